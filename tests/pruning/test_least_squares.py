"""Least squares in blocks of columns, against numpy and against solving everything anew."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.pruning import least_squares
from capsprune.pruning.least_squares import Rows, order_of_selection


def drawn(seed, images, blocks, width, targets):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(images, blocks * width, generator=generator, dtype=torch.float64)
    columns = columns * torch.rand(blocks * width, generator=generator, dtype=torch.float64) + 1
    mixing = torch.randn(blocks * width, targets, generator=generator, dtype=torch.float64)
    noise = torch.randn(images, targets, generator=generator, dtype=torch.float64)
    return columns, columns @ mixing + 0.1 * noise


def left(columns, targets, chosen, penalty):
    """Return what ridge regression leaves: squares, and those of the coefficients, weighted."""
    u = (columns - columns.mean(0))[:, chosen].numpy()
    s = (targets - targets.mean(0)).numpy()
    coefficients = np.linalg.solve(u.T @ u + penalty * np.eye(u.shape[1]), u.T @ s)
    return ((s - u @ coefficients) ** 2).sum() + penalty * (coefficients**2).sum()


def greedy(columns, targets, width, penalty):
    """Choose blocks with everything solved anew each time."""
    blocks, chosen = columns.shape[1] // width, []
    while len(chosen) < blocks:
        rest = [block for block in range(blocks) if block not in chosen]
        costs = [
            left(
                columns,
                targets,
                [width * b + k for b in (*chosen, block) for k in range(width)],
                penalty,
            )
            for block in rest
        ]
        chosen.append(rest[int(np.argmin(costs))])
    return chosen


@settings(max_examples=40)
@given(
    images=st.integers(2, 40),
    blocks=st.integers(1, 9),
    width=st.integers(1, 4),
    targets=st.integers(1, 5),
    ridge=st.sampled_from([1e-1, 1e-3]),
    seed=st.integers(0, 999),
)
def test_blocks_are_chosen_as_if_all_were_solved_anew(images, blocks, width, targets, ridge, seed):
    columns, wanted = drawn(seed, images, blocks, width, targets)
    rows = Rows.gather(zip(columns.split(7), wanted.split(7), strict=True))
    order = order_of_selection(rows, width, ridge).tolist()
    assert sorted(order) == list(range(blocks))
    penalty = rows.penalty(ridge)
    expected = greedy(columns, wanted, width, penalty)
    for count in range(1, blocks + 1):  # Ties of what adds next to nothing may fall otherwise.
        chosen, best = (
            [width * b + k for b in blocks_of[:count] for k in range(width)]
            for blocks_of in (order, expected)
        )
        whole = left(columns, wanted, [], penalty)
        mine = left(columns, wanted, chosen, penalty)
        assert mine <= left(columns, wanted, best, penalty) + 3e-3 * whole


@settings(max_examples=40)
@given(
    images=st.integers(1, 60),
    columns=st.integers(1, 20),
    targets=st.integers(1, 5),
    chosen=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_solutions_are_those_of_ridge_regression(images, columns, targets, chosen, seed):
    values, wanted = drawn(seed, images, columns, 1, targets)
    rows = Rows.gather([(values, wanted)])
    assert len(rows.columns) <= max(1, columns + targets) or images <= columns + targets
    places = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))[:chosen]
    u = (values - values.mean(0))[:, places]
    penalty = rows.penalty(0.01)
    gram = u.T @ u + penalty * torch.eye(len(places), dtype=torch.float64)
    expected = torch.linalg.solve(gram, u.T @ (wanted - wanted.mean(0)))
    torch.testing.assert_close(rows.solve(places, 0.01), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(rows.column_means, values.mean(0))
    torch.testing.assert_close(rows.target_means, wanted.mean(0))


def test_the_blocks_that_make_the_targets_come_first():
    columns, _ = drawn(3, 200, 30, 2, 1)
    mixing = torch.zeros(60, 4, dtype=torch.float64)
    for block in (4, 11, 25):
        mixing[2 * block : 2 * block + 2] = torch.randn(2, 4, dtype=torch.float64)
    rows = Rows.gather([(columns, columns @ mixing)])
    order = order_of_selection(rows, 2, 1e-6)
    assert set(order[:3].tolist()) == {4, 11, 25}


def test_columns_that_say_nothing_come_last():
    columns, targets = drawn(3, 50, 6, 2, 2)
    columns[:, 4:6] = 0.5
    rows = Rows.gather([(columns, targets)])
    assert order_of_selection(rows, 2, 1e-3).tolist()[-1] == 2
    silent = Rows.gather([(torch.ones(5, 4), torch.ones(5, 2))])
    assert sorted(order_of_selection(silent, 2, 1e-3).tolist()) == [0, 1]
    assert torch.equal(silent.solve(torch.arange(4), 1e-3), torch.zeros(4, 2).double())


def test_rows_are_bounded(monkeypatch):
    monkeypatch.setattr(least_squares, "VALUES", 100)
    taken = []

    def batches():
        for index in range(50):
            taken.append(index)
            yield torch.randn(5, 7), torch.randn(5, 3)

    rows = Rows.gather(batches())
    assert (len(taken), rows.images) == (2, 10)
    with pytest.raises(ValueError, match="no images"):
        Rows.gather([])


@pytest.mark.slow
def test_as_many_capsules_as_sabours_network_has():
    columns, targets = drawn(0, 1000, 1152, 8, 160)
    order = order_of_selection(Rows.gather([(columns, targets)]), 8, 1e-3)
    assert sorted(order.tolist()) == list(range(1152))
