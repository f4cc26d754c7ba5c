import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.capsules import dynamic_routing, squash
from capsprune.capsules.routing_trace import RoutingTrace


def drawn(seed, batch, capsules, classes, d1, d2, *, biased=True, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, weight = normal(batch, capsules, d1) * scale, normal(classes, capsules, d1, d2)
    labels = torch.randint(classes, (batch,), generator=generator)
    return u, weight, normal(classes, d2) if biased else None, labels


@settings(max_examples=60)
@given(
    batch=st.integers(1, 7),
    capsules=st.integers(1, 6),
    classes=st.integers(2, 5),
    d1=st.integers(1, 4),
    d2=st.integers(1, 5),
    iterations=st.integers(1, 5),
    biased=st.booleans(),
    votes_bytes=st.sampled_from([1, 2000, 2**26]),
    seed=st.integers(0, 1000),
)
def test_the_traced_routing_is_that_of_the_network(
    batch, capsules, classes, d1, d2, iterations, biased, votes_bytes, seed
):
    u, weight, bias, labels = drawn(seed, batch, capsules, classes, d1, d2, biased=biased)
    trace = RoutingTrace(weight, bias, iterations, votes_bytes=votes_bytes)
    v = trace.update(u, labels)
    torch.testing.assert_close(v, dynamic_routing(u, weight, bias, iterations))
    assert len(trace.coupling_entropy) == len(trace.agreement_true) == iterations
    assert trace.coupling_entropy[0] == pytest.approx(1)
    assert all(0 <= value <= 1 + 1e-12 for value in trace.coupling_entropy)


def test_the_accuracy_of_an_iteration_is_that_of_a_network_with_so_many():
    u, weight, bias, labels = drawn(3, 40, 6, 4, 3, 5)
    trace = RoutingTrace(weight, bias, 4, votes_bytes=2000)
    trace.update(u, labels)
    for iterations, accuracy in enumerate(trace.accuracy, 1):
        lengths = dynamic_routing(u, weight, bias, iterations).norm(dim=2)
        assert accuracy == pytest.approx(float((lengths.argmax(1) == labels).double().mean()))


def test_figures_are_those_of_the_equations():
    """Of every image, class and capsule by itself, in plain loops."""
    u, weight, bias, labels = drawn(5, 6, 4, 3, 2, 3)
    trace = RoutingTrace(weight, bias, 3, votes_bytes=1000)
    for part in (slice(0, 1), slice(1, 6)):
        trace.update(u[part], labels[part])
    entropy, true, other = ([[] for _ in range(3)] for _ in range(3))
    for image, label in zip(u, labels.tolist(), strict=True):
        votes = [[image[i] @ weight[j, i] for i in range(4)] for j in range(3)]
        logits = torch.zeros(3, 4, dtype=torch.float64)
        for iteration in range(3):
            c = torch.softmax(logits, dim=0)
            for i in range(4):
                bits = -sum(float(p) * float(p.log()) for p in c[:, i])
                entropy[iteration].append(bits / float(torch.tensor(3.0).log()))
            for j in range(3):
                v = squash(sum(c[j, i] * votes[j][i] for i in range(4)) + bias[j])
                for i in range(4):
                    logits[j, i] += v @ votes[j][i]
                    (true if j == label else other)[iteration].append(float(v @ votes[j][i]))
    for found, lists in (
        (trace.coupling_entropy, entropy),
        (trace.agreement_true, true),
        (trace.agreement_other, other),
    ):
        assert found == pytest.approx([sum(values) / len(values) for values in lists], rel=1e-6)


def test_votes_for_one_class_alone_end_the_indecision():
    """All capsules agree on class 1: coupling concentrates there, and so does agreement."""
    u = torch.ones(4, 5, 1)
    weight = torch.zeros(3, 5, 1, 2)
    weight[1] = 10.0
    trace = RoutingTrace(weight, None, 3)
    trace.update(u, torch.ones(4, dtype=torch.int64))
    assert trace.coupling_entropy[0] == pytest.approx(1)
    assert trace.coupling_entropy[2] < 0.01
    assert trace.agreement_true[2] > 10
    assert trace.agreement_other[2] == pytest.approx(0, abs=1e-6)


def test_votes_are_formed_a_chunk_at_a_time(monkeypatch):
    u, weight, bias, labels = drawn(0, 10, 4, 3, 2, 3)
    one_image = 3 * 4 * 3 * 8
    seen = []
    einsum = torch.einsum
    monkeypatch.setattr(
        torch, "einsum", lambda *args: seen.append(result := einsum(*args)) or result
    )
    RoutingTrace(weight, bias, 2, votes_bytes=6 * one_image).update(u, labels)
    assert [len(votes) for votes in seen] == [3, 3, 3, 1]


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(ValueError, match="single output capsule"):
        RoutingTrace(torch.ones(1, 2, 2, 2), None, 3)
    with pytest.raises(ValueError, match="iterations"):
        RoutingTrace(torch.ones(2, 2, 2, 2), None, 0)
    with pytest.raises(ValueError, match="no images"):
        _ = RoutingTrace(torch.ones(2, 2, 2, 2), None, 1).agreement_true
