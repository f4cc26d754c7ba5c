import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capsprune.errors import StrategyError
from capsprune.pruning.strategy import Strategy, kept_channels, read_strategy


def kept_of(fraction, channels, round_to=1):
    return int(kept_channels(np.array([fraction]), np.array([channels]), round_to)[0])


@pytest.mark.parametrize(
    ("fraction", "channels", "kept"),
    [
        (0.0, 64, 64),
        (0.5, 64, 32),
        (0.499, 64, 33),  # floor(31.9) go
        (0.01, 64, 64),
        (0.99, 64, 1),
        (0.999, 4, 1),
        (0.0, 1, 1),
        (0.9, 1, 1),
    ],
)
def test_floor_of_the_fraction_goes_and_one_stays(fraction, channels, kept):
    assert kept_of(fraction, channels) == kept


@given(fraction=st.floats(0, 1, exclude_max=True), channels=st.integers(1, 2048))
def test_kept_is_all_but_the_floor(fraction, channels):
    assert kept_of(fraction, channels) == max(1, channels - math.floor(fraction * channels))


@given(
    fraction=st.floats(0, 1, exclude_max=True),
    blocks=st.integers(1, 64),
    round_to=st.sampled_from([2, 4, 8, 16]),
)
def test_rounding_gives_the_nearest_multiple(fraction, blocks, round_to):
    channels = blocks * round_to
    exact, kept = kept_of(fraction, channels), kept_of(fraction, channels, round_to)
    assert kept % round_to == 0 and round_to <= kept <= channels
    assert abs(kept - exact) <= round_to / 2 or kept == round_to


def test_a_group_smaller_than_the_multiple_keeps_all():
    assert kept_of(0.9, 6, 8) == 6


def test_many_strategies_at_once():
    fractions = np.array([[0.0, 0.5], [0.25, 0.9]])
    assert kept_channels(fractions, np.array([8, 10])).tolist() == [[8, 5], [6, 1]]


def content(**changes):
    return {
        "model": "tiny",
        "flops": 0.5,
        "fractions_removed": {"stem": 0.25, "inner": 0.5},
    } | changes


def written(tmp_path, value):
    path = tmp_path / "strategy.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_strategy_is_read_and_written(tmp_path, tiny):
    strategy = read_strategy(written(tmp_path, content()), "tiny")
    assert strategy.kept(tiny.dependencies).tolist() == [12, 12]
    again = written(tmp_path, Strategy("tiny", 0.5, {"stem": 0.3, "inner": 0.6}, 4).to_dict())
    strategy = read_strategy(again, "tiny")
    assert strategy == Strategy("tiny", 0.5, {"stem": 0.3, "inner": 0.6}, 4)
    assert strategy.kept(tiny.dependencies).tolist() == [12, 12]


def test_the_order_of_a_file_plays_no_part(tmp_path, tiny):
    fractions = {"inner": 0.5, "stem": 0.25}
    strategy = read_strategy(written(tmp_path, content(fractions_removed=fractions)), "tiny")
    assert strategy.array(tiny.dependencies).tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1, 2]", r"is no strategy: \[1, 2\] is not accepted"),
        (content(flops="half"), "flops 'half' is not accepted"),
        (content(flops=True), "flops True is not accepted"),
        (content(flops=0), "flops 0 is not accepted"),
        (content(model=["tiny"]), "model"),
        (content(model="x" * 10**6), "at most 255 characters"),
        (content(fractions_removed=[0.5]), r"fractions_removed \[0.5\] is not accepted"),
        ({"model": "tiny", "flops": 0.5}, "fractions_removed is missing"),
        (content(model="resnet50"), "for resnet50, not for tiny"),
        (content(fractions_removed={"stem": 1.0}), r"stem 1\.0 is not accepted"),
        (content(fractions_removed={"stem": -0.1}), r"stem -0\.1 is not accepted"),
        (content(fractions_removed={"stem": "much"}), "stem 'much' is not accepted"),
        (content(fractions_removed={"stem": None}), "stem None is not accepted"),
        (content(fractions_removed={"stem": True}), "stem True is not accepted"),
        (content(fractions_removed={"\ud800": 0.5}), "is no JSON"),
        ('{"model": "tiny", "flops": 0.5, "fractions_removed": {"stem": NaN}}', "NaN"),
        (content(round_to=0), "round_to 0 is not accepted"),
        (content(round_to=2.5), r"round_to 2\.5 is not accepted"),
        (content(round_to=True), "round_to True is not accepted"),
        (content(round_to=10**15), "round_to 1000000000000000 is not accepted"),
        (content(round_to=10**30), "too large"),
        (content(criterion="magnitude"), "criterion 'magnitude' is not accepted"),
        (content(criterion=1), "criterion 1 is not accepted"),
        (content(head=3), "head 3 is not accepted"),
        (content(capsule_criterion=3), "capsule_criterion 3 is not accepted"),
    ],
)
def test_a_file_that_is_no_strategy_is_refused(tmp_path, value, said):
    with pytest.raises(StrategyError, match=said) as error:
        read_strategy(written(tmp_path, value), "tiny")
    assert "strategy.json" in str(error.value)
    assert len(str(error.value)) < 600 + len(str(tmp_path))


def test_a_strategy_of_a_whole_network_names_its_head(tmp_path, tiny):
    strategy = Strategy("tiny", 0.5, {"stem": 0.3}, 4, head="dynamic", capsule_criterion="coupling")
    path = written(tmp_path, strategy.to_dict())
    assert read_strategy(path, "tiny", "dynamic") == strategy
    everything = Strategy.keeping_all("tiny", tiny.dependencies, "dynamic")
    assert everything.head == "dynamic" and not any(everything.fractions.values())
    with pytest.raises(StrategyError, match="does not fit this network"):
        Strategy("tiny", 0.5, {"stm": 0.1}, head="dynamic").array(tiny.dependencies)


@pytest.mark.parametrize(
    ("made_for", "head", "said"),
    [
        (None, "dynamic", "for a backbone alone; give it to 'prune', and here"),
        ("dynamic", None, "whole network with the head dynamic.*give it to 'prune-caps'"),
        ("em", "dynamic", "with the head em, not dynamic; give one for dynamic"),
    ],
)
def test_a_strategy_of_another_scope_is_refused(tmp_path, made_for, head, said):
    given = {} if made_for is None else {"head": made_for}
    path = written(tmp_path, content(**given))
    with pytest.raises(StrategyError, match=said):
        read_strategy(path, "tiny", head)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StrategyError, match=r"no strategy file .*absent\.json"):
        read_strategy(tmp_path / "absent.json", "tiny")
    with pytest.raises(StrategyError):
        read_strategy(tmp_path, "tiny")


def test_an_unknown_group_gives_the_nearest(tiny):
    strategy = Strategy("tiny", 0.5, {"stem": 0.1, "inner": 0.2, "iner": 0.2})
    with pytest.raises(StrategyError, match=r"'iner'; did you mean inner"):
        strategy.kept(tiny.dependencies)


def test_a_group_left_out_is_named(tiny):
    with pytest.raises(StrategyError, match="nothing of group 'inner'"):
        Strategy("tiny", 0.5, {"stem": 0.1}).kept(tiny.dependencies)


@pytest.mark.parametrize(("round_to", "width"), [(8, 1), (8, 4), (8, 32), (8, 12), (1, 3)])
def test_rounding_counts_channels_where_units_have_several(round_to, width):
    units = np.full(7, 24)
    kept = kept_channels(np.linspace(0, 0.99, 7), units, round_to, np.full(7, width))
    assert (kept * width % round_to == 0).all()
    assert kept[0] == 24 and (kept >= 1).all() and kept[-1] < 12


def test_a_pipe_or_a_device_is_no_strategy(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(StrategyError, match="is no regular file"):
            read_strategy(path, "tiny")


@given(stem=st.integers(1, 16), inner=st.integers(1, 24))
def test_counts_become_a_strategy_that_gives_them_again(shared_tiny, stem, inner):
    dependencies = shared_tiny.dependencies
    strategy = Strategy.keeping(np.array([stem, inner]), "tiny", dependencies, 0.5)
    assert strategy.kept(dependencies).tolist() == [stem, inner]
    assert (strategy.model, strategy.flops) == ("tiny", 0.5)
