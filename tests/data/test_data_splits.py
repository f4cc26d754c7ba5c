import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.data.splits import Split, draw_split, stratified_sample
from capsprune.errors import DataError

labels_lists = st.lists(st.integers(0, 5), min_size=6, max_size=120).filter(
    lambda labels: max(labels.count(label) for label in labels) >= 3
)


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def draw(labels, **changes):
    arguments = {
        "data": "digits",
        "seed": 0,
        "fingerprint": "f",
        "validation_share": 0.1,
        "test_share": 0.2,
    }
    return draw_split(np.asarray(labels), **{**arguments, **changes})


@settings(max_examples=60, deadline=None)
@given(labels=labels_lists, share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_sample_takes_the_share_and_leaves_one_of_each_class(labels, share, seed):
    labels = np.asarray(labels)
    chosen = stratified_sample(labels, share, rng(seed))
    assert np.array_equal(chosen, np.unique(chosen))
    assert chosen.min() >= 0 and chosen.max() < len(labels)
    left = np.delete(labels, chosen)
    assert set(left) == set(labels)
    spare = len(labels) - len(set(labels))
    assert len(chosen) == min(max(round(share * len(labels)), 1), spare)
    for label in set(labels):
        count = (labels == label).sum()
        taken = (labels[chosen] == label).sum()
        # Off by one, more only where other classes have none to spare.
        if all((labels == other).sum() * (1 - share) >= 1 for other in set(labels)):
            assert abs(taken - share * count) <= 1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(labels=labels_lists, seed=st.integers(0, 2**32))
def test_split_is_a_partition_and_survives_json(labels, seed):
    try:
        split = draw(labels, seed=seed)
    except DataError as error:
        assert "too few" in str(error)
        return
    parts = [split.train.tolist(), list(split.validation), list(split.test)]
    assert sorted(chain(*parts)) == list(range(len(labels)))
    assert [len(part) for part in parts] == [
        split.counts[k] for k in ("train", "validation", "test")
    ]
    assert set(np.asarray(labels)[split.train]) == set(labels)
    assert Split.from_json(split.to_json()) == split
    assert draw(labels, seed=seed) == split


def test_another_seed_gives_another_split():
    labels = np.arange(200) % 4
    assert draw(labels).validation != draw(labels, seed=1).validation


def test_split_is_the_same_on_every_machine():
    split = draw(np.arange(40) % 4)
    assert split.test == (2, 3, 11, 13, 18, 20, 21, 32)
    assert split.validation == (9, 14, 16)


def test_own_sets_are_not_carved():
    split = draw([0, 1] * 10, test_share=None, own_counts={"test": 7})
    assert split.test is None
    assert split.counts == {"train": 18, "validation": 2, "test": 7}
    whole = draw([0, 1], test_share=None, validation_share=None)
    assert whole.train.tolist() == [0, 1]
    assert whole.method == "as the data set came"


def test_too_few_images_to_carve():
    with pytest.raises(DataError, match=r"2 image\(s\) in 2 class.*too few.*at least two images"):
        draw([0, 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"validation": [1, 1]}, "listed twice"),
        ({"validation": [1], "test": [1]}, "listed twice"),
        ({"validation": [99]}, "outside the 20 images"),
        ({"validation": [-1]}, "validation"),
        ({"surplus": 1}, "surplus"),
        ({"size": "x"}, "size"),
    ],
)
def test_bad_stored_split_names_reason_and_remedy(change, reason):
    stored = json.loads(draw([0, 1] * 10).to_json())
    with pytest.raises(DataError, match=reason) as caught:
        Split.from_json(json.dumps({**stored, **change}))
    assert "restore the file, or start a new run" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"data": "digits"'])
def test_text_that_is_no_split(text):
    with pytest.raises(DataError, match=r"restore the file"):
        Split.from_json(text)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"data": "cifar10"}, "from data set 'digits', not 'cifar10'"),
        ({"size": 21}, "from 20 images, but data set 'digits' now has 21"),
        ({"fingerprint": "g"}, "has changed since the stored split was drawn"),
        ({"own_test": True}, "on a test set of its own, which now has one"),
        ({"own_validation": True}, "on a validation set of its own, which now has one"),
    ],
)
def test_split_of_other_data_is_refused(change, cause):
    fitting = {
        "data": "digits",
        "size": 20,
        "fingerprint": "f",
        "own_validation": False,
        "own_test": False,
    }
    split = draw([0, 1] * 10)
    split.require_fit(**fitting)
    with pytest.raises(DataError, match=cause) as caught:
        split.require_fit(**{**fitting, **change})
    assert "use the data that it was drawn from, by --data-root if" in str(caught.value)


def test_a_folder_may_move():
    split = draw([0, 1] * 10, data="imagefolder:/old")
    split.require_fit(
        data="imagefolder:/new", size=20, fingerprint="f", own_validation=False, own_test=False
    )


@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=5),
    part=st.floats(0.2, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_part_leaves_the_test_set_as_it_is(counts, part, seed):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    whole = draw(labels, seed=seed)
    split = draw(labels, seed=seed, part=part)
    assert split.test == whole.test
    used = [*split.train, *split.validation]
    assert sorted([*used, *split.unused, *split.test]) == list(range(len(labels)))
    assert abs(len(used) - part * (len(labels) - len(whole.test))) <= 1
    for label, count in enumerate(counts):  # of each class as much
        kept = sum(labels[n] == label for n in used)
        of_whole = count - sum(labels[n] == label for n in whole.test)
        assert abs(kept - part * of_whole) <= 1
    assert split.counts["train"] == len(split.train)
    assert Split.from_json(split.to_json()) == split


def test_a_split_of_before_there_were_parts_is_read():
    record = json.loads(draw([0, 1] * 10).to_json())
    del record["unused"]
    assert Split.from_json(json.dumps(record)).unused == ()


@given(
    labels=labels_lists,
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
    part=st.floats(0.2, 1),
)
def test_what_one_seed_trains_on_another_never_tests(labels, seeds, part):
    try:
        one, other = (draw(labels, seed=seed, part=part) for seed in seeds)
    except DataError as error:
        assert "too few" in str(error)
        return
    assert one.test == other.test == draw(labels).test
    assert not {*one.train, *one.validation} & {*other.test}


def test_other_test_images_are_drawn_where_they_are_asked_for():
    labels = np.arange(200) % 4
    whole, other = draw(labels, seed=3), draw(labels, seed=3, test_seed=1)
    assert other.test != whole.test
    assert (whole.used_test_seed, other.used_test_seed) == (0, 1)
    with pytest.raises(DataError, match=r"test set of its own.*leave out --split-seed"):
        draw(labels, test_share=None, own_counts={"test": 7}, test_seed=1)


def test_splits_that_are_the_same_in_effect_have_one_digest():
    labels = np.arange(40) % 4
    split = draw(labels)
    same = draw(labels, data="imagefolder:/moved", part=1.0, test_seed=0, fingerprint="g")
    assert same.digest == split.digest
    older = json.loads(split.to_json())
    del older["test_seed"], older["part"]
    read = Split.from_json(json.dumps(older))
    assert read.digest == split.digest and read.used_test_seed == 0 and read.used_part == 1
    others = [draw(labels, **change) for change in ({"seed": 1}, {"test_seed": 1}, {"part": 0.5})]
    others.append(split.model_copy(update={"value_range": (0.0, 9.0)}))
    assert len({split.digest, *(other.digest for other in others)}) == 5


def test_the_part_of_an_older_split_is_found():
    stored = json.loads(draw(np.arange(400) % 4, part=0.25).to_json())
    assert Split.from_json(json.dumps(stored)).used_part == 0.25
    assert Split.from_json(json.dumps({**stored, "part": None})).used_part == 0.25
