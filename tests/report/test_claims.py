import pytest
from fake_runs import make_sweep

from capsprune.report.claims import claims
from capsprune.report.collect import collect

FINETUNED = "with a finetuned trunk"
NOT_BELOW = "not less accurate than unpruned"
FEWER = "fewer primary capsules"
MEMORY = "lowers the memory"
EPOCH = "shortens an epoch"
FALLS = "with a frozen trunk accuracy falls"
ENTROPY = "higher entropy"
LINEAR = "more accurate than a linear one"
ROBUST = "distorted images cost"


def judge(tmp_path, change=None, **grid):
    make_sweep(tmp_path, change=change, **grid)
    return claims(collect([(tmp_path, "grid")]))


def one(found, words):
    (claim,) = (claim for claim in found if words in claim.statement.lower())
    return claim


def with_accuracy(accuracy):
    """Alter the accuracies of capsule networks: `accuracy(cell)`."""

    def change(cell, stage, summary):
        if stage == "caps":
            summary["accuracy"] = accuracy(cell)

    return change


@pytest.mark.parametrize(
    ("words", "evidence"),
    [
        (FINETUNED, "0 % pruned: finetuned 81.2 % against 61.2 % frozen, difference +20.0 ± 0.6"),
        (FEWER, "50 % pruned: 64 capsules against 128 capsules unpruned, difference -64 (3 seeds)"),
        (MEMORY, "finetuned, 50 % pruned: 700 MB against 900 MB unpruned"),
        (EPOCH, "15.10 s against 30.10 s unpruned, difference -15.00"),
        (FALLS, "from 0 to 50 % pruned: 51.2 % against 61.2 % at 0 %, difference -10.0"),
        (ENTROPY, "0.500 bits against 0.400 bits"),
        (LINEAR, "frozen, 50 % pruned: capsules 51.2 % against 50.2 % linear, difference +1.0"),
        (ROBUST, "capsules lose 10.0 points against 20.0 points linear, difference -10.0"),
    ],
)
def test_claims_that_hold_say_with_which_figures(tmp_path, words, evidence):
    claim = one(judge(tmp_path), words)
    assert claim.verdict == "holds"
    assert evidence in claim.evidence
    assert claim.statement[0].isupper()


def test_a_difference_against_a_claim(tmp_path):
    change = with_accuracy(lambda cell: 0.5 if cell.trunk == "finetuned" else 0.6)
    assert one(judge(tmp_path, change), FINETUNED).verdict == "does not hold"


def test_pruned_below_unpruned_does_not_hold(tmp_path):
    change = with_accuracy(lambda cell: 0.8 - 0.001 * cell.pruned)
    assert one(judge(tmp_path, change), NOT_BELOW).verdict == "does not hold"


def test_the_same_size_twice_is_not_fewer(tmp_path):
    def change(cell, stage, summary):
        if stage == "caps":
            summary["primary_capsules"] = 128

    assert one(judge(tmp_path, change), FEWER).verdict == "does not hold"


def test_a_difference_within_its_spread_over_seeds_is_undecided(tmp_path):
    # Differences of +8, +8 and -13 points: 1 +- 7.
    def accuracy(cell):
        if cell.pruned == 0:
            return 0.6
        return 0.68 if cell.seed < 2 else 0.47

    claim = one(judge(tmp_path, with_accuracy(accuracy)), NOT_BELOW)
    assert claim.verdict == "undecided"
    assert "difference +1.0 ± 7.0 points (3 seeds)" in claim.evidence


def test_pairing_by_seed_takes_out_what_the_seeds_share(tmp_path):
    change = with_accuracy(lambda c: 0.5 + 0.1 * c.seed + (0.02 if c.trunk == "finetuned" else 0))
    assert one(judge(tmp_path, change), FINETUNED).verdict == "holds"


@pytest.mark.parametrize(("images", "verdict"), [(10_000, "holds"), (100, "undecided")])
def test_one_seed_is_judged_by_the_number_of_test_images(tmp_path, images, verdict):
    def change(cell, stage, summary):
        if stage == "caps":
            summary["images"] = images
            summary["accuracy"] = 0.6 if cell.trunk == "finetuned" else 0.57

    assert one(judge(tmp_path, change, seeds=(0,)), FINETUNED).verdict == verdict


def test_one_seed_needs_5_per_cent_of_a_figure_whose_error_is_unknown(tmp_path):
    def change(cell, stage, summary):
        if stage == "caps":
            summary["peak_memory_mb"] = 1000 - 0.9 * cell.pruned
            summary["epoch_seconds"] = 1000 - 1.1 * cell.pruned

    found = judge(tmp_path, change, seeds=(0,))
    assert one(found, MEMORY).verdict == "undecided"
    assert "error unknown (1 seed)" in one(found, MEMORY).evidence
    assert one(found, EPOCH).verdict == "holds"


def test_a_claim_may_hold_in_part(tmp_path):
    change = with_accuracy(lambda cell: {0: 0.7, 25: 0.8, 50: 0.6}[cell.pruned])
    claim = one(judge(tmp_path, change, pruned=(0, 25, 50)), NOT_BELOW)
    assert claim.verdict == "holds in part"
    assert "2 comparisons: 1 for it, 1 against it" in claim.evidence


def test_without_the_data_nothing_is_claimed(tmp_path):
    found = judge(tmp_path, pruned=(0,), trunks={"finetuned": {}})
    for words in (FINETUNED, NOT_BELOW, FEWER, MEMORY, EPOCH, FALLS, ENTROPY):
        claim = one(found, words)
        assert claim.verdict == "cannot be told"
        assert "which these results lack" in claim.evidence


def test_memory_of_a_cpu_is_called_so(tmp_path):
    assert "resident set on a CPU" in one(judge(tmp_path), MEMORY).statement


def test_runs_without_seeds_in_common_are_not_compared(tmp_path):
    absent = [f"mobilenet_v1-{p}-frozen-s0" for p in (0, 50)]
    absent += [f"mobilenet_v1-{p}-finetuned-s1" for p in (0, 50)]
    make_sweep(tmp_path, seeds=(0, 1), skip=absent)
    found = claims(collect([(tmp_path, "grid")]))
    assert one(found, FINETUNED).verdict == "cannot be told"


def test_claims_on_several_backbones_name_them(tmp_path):
    make_sweep(tmp_path, backbones=("mobilenet_v1", "resnet50"))
    found = [claim.statement for claim in claims(collect([(tmp_path, "grid")]))]
    for backbone in ("mobilenet_v1", "resnet50"):
        assert f"{backbone} on digits: pruning leaves fewer primary capsules." in found
