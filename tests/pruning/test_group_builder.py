"""Groups that are put together by what layers say of themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capsprune.pruning.group_builder import GroupBuilder
from capsprune.pruning.groups import AxisOwners, ChannelGroup, Dependencies, DerivedGroup


def owners(group, channel):
    return AxisOwners(np.array(group, dtype=np.int64), np.array(channel, dtype=np.int64))


def traced(*groups, **axes):
    return Dependencies(groups, {(name, "out"): axis for name, axis in axes.items()})


def test_units_of_several_channels_are_joined_where_all_of_them_are_in_one_whole():
    # Units 0 and 1 own positions 0 and 2, 1 and 3; units 2 and 3 own 4 and 6, 5 and 7.
    axis = owners([0] * 8, [0, 1, 0, 1, 2, 3, 2, 3])
    builder = GroupBuilder(traced(ChannelGroup("a", 4, 2), a=axis))
    joined = builder.merge(axis, np.arange(2).repeat(4), "capsules", "why")
    assert joined.group.tolist() == [0, 0] and joined.channel.tolist() == [0, 1]
    found = builder.build()
    assert found.groups == (ChannelGroup("a", 2, 4, "capsules"),)
    assert found.owners["a", "out"].channel.tolist() == [0] * 4 + [1] * 4
    # The same offset in each of two blocks of a grouped convolution reaches into two wholes.
    axis = owners([0] * 8, [0, 1, 2, 3, 0, 1, 2, 3])
    builder = GroupBuilder(traced(ChannelGroup("a", 4, 2), a=axis))
    joined = builder.merge(axis, np.arange(2).repeat(4), "capsules", "why")
    assert joined.group.tolist() == [-1, -1]
    found = builder.build()
    assert found.groups == () and found.unprunable == {"a": "why"} and not found.owners


def test_numbers_follow_when_a_group_goes_and_others_come():
    first, second = owners([0, 0], [0, 1]), owners([1, 1, -1], [0, 1, -1])
    builder = GroupBuilder(traced(ChannelGroup("a", 2), ChannelGroup("b", 2), a=first, b=second))
    axis = owners([0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1])
    # Group 0 makes nothing by itself.
    builder.merge(axis, np.array([0, 0, 1, 1, 2, 2]), "capsules", "why")
    source = builder.add(ChannelGroup("c", 4))
    types = builder.derive("d", source, np.array([0, 0, 1, 1]))
    builder.own("d", "out", types.repeat(3))
    last = builder.add(ChannelGroup("e", 2))
    builder.own("e", "in", last)
    builder.own("f", "in", AxisOwners.unowned(3))
    found = builder.build()
    assert found.names == ("c", "e")
    assert set(found.unprunable) == {"a", "b"}
    assert found.derived[0].source == 0 and found.derived[0].name == "d"
    assert found.owners["d", "out"].group.tolist() == [2] * 6
    assert found.owners["d", "out"].channel.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.owners["e", "in"].group.tolist() == [1, 1]
    assert set(found.owners) == {("d", "out"), ("e", "in")}
    masks = found.with_derived([np.array([True, False, False, False]), np.array([True, True])])
    assert [mask.tolist() for mask in masks[2:]] == [[True, False]]


@pytest.mark.parametrize("width", [1, 2])
@settings(max_examples=60)
@given(data=st.data())
def test_what_is_joined_is_what_can_go_alone(width, data):
    """Against the definition: a whole is a unit if it is made of all of a few units of a group."""
    size = data.draw(st.integers(1, 3))
    wholes = data.draw(st.integers(1, 4))
    count = wholes * size
    total = count + data.draw(st.integers(0, 2))
    numbers = data.draw(st.permutations(range(total)))
    if data.draw(st.booleans()):
        numbers = sorted(numbers)
    # Units of `width` positions, of two groups in turn of `cut`; what is left is nobody's.
    units = [numbers[start : start + width] for start in range(0, total - width + 1, width)]
    cut = data.draw(st.integers(0, len(units)))
    axis = AxisOwners.unowned(total)
    for number, positions in enumerate(units):
        axis.group[positions] = int(number >= cut)
        axis.channel[positions] = number if number < cut else number - cut
    parts = np.full(total, -1)
    parts[:count] = np.arange(wholes).repeat(size)
    groups = ChannelGroup("a", cut, width), ChannelGroup("b", len(units) - cut, width)
    builder = GroupBuilder(traced(*groups, layer=axis))
    joined = builder.merge(axis, parts, "capsules", "why")
    for whole in range(wholes):
        inside = set(np.flatnonzero(parts == whole).tolist())
        touching = [number for number, unit in enumerate(units) if inside & set(unit)]
        alone = (
            all(set(units[number]) <= inside for number in touching)
            and sum(len(units[number]) for number in touching) == size
            and len({number >= cut for number in touching}) == 1
        )
        assert (joined.group[whole] >= 0) == alone
    found = builder.build()
    for index, group in enumerate(found.groups):
        if not group.channels:
            continue
        mine = found.owners["layer", "out"].group == index
        sizes = np.bincount(found.owners["layer", "out"].channel[mine])
        assert sizes.tolist() == [size] * group.channels
        assert (group.kind, group.width) == ("capsules", size)


@settings(max_examples=30)
@given(members=st.lists(st.integers(0, 3), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_units_that_follow_are_counted_as_they_stay(members, seed):
    members = np.unique(members, return_inverse=True)[1]
    group = DerivedGroup("types", 0, members, int(members.max()) + 1)
    ranking = np.random.default_rng(seed).permutation(len(members))
    for kept, count in enumerate(group.counts(ranking)):
        mask = np.zeros(len(members), dtype=np.bool_)
        mask[ranking[:kept]] = True
        assert group.staying(mask).sum() == count == len(set(members[mask].tolist()))
