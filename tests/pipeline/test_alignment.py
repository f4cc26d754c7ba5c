import pytest

from capsprune.options import PruneOptions
from capsprune.pipeline.alignment import odd_counts

UNPRUNED = {
    "conv1": {"in": 3, "out": 64},
    "bn1": {"out": 64},
    "conv2": {"in": 64, "out": 12},
    "fc": {"in": 12, "out": 10},
}


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ((64, 12), None),  # nothing was cut, though 12 and 10 are no multiples of 8
        ((40, 8), None),
        ((41, 8), "1 of the 2 layers"),
        ((41, 9), "2 of the 2 layers"),
        ((40, 12), None),
    ],
)
def test_layers_that_were_cut_to_odd_counts_are_told(kept, told):
    first, second = kept
    pruned = {
        "conv1": {"in": 3, "out": first},
        "bn1": {"out": first},
        "conv2": {"in": first, "out": second},
    }
    said = odd_counts(pruned, UNPRUNED)
    assert (said is None) == (told is None)
    if told:
        assert said.startswith(told) and "--round-to 8" in said


def test_a_search_keeps_multiples_of_8_unless_it_is_told_otherwise():
    assert PruneOptions().round_to == 8
    assert PruneOptions(round_to=1).round_to == 1
