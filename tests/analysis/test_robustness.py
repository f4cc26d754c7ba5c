import pytest
import torch

from capsprune.analysis.robustness import (
    DISTORTIONS,
    UNDISTORTED,
    Distortion,
    accuracies,
    distort,
)

NAMES = ("rotation", "shift", "scale", "shear")


def images(count=4, size=12, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def distorted(batch, name, amount):
    return distort(batch, Distortion(name, amount), torch.arange(len(batch)))


def test_the_grid_begins_with_nothing_and_has_every_amount_once():
    assert DISTORTIONS[0] == UNDISTORTED and UNDISTORTED.unit == ""
    assert len(set(DISTORTIONS)) == len(DISTORTIONS) == 16
    assert {d.name for d in DISTORTIONS} == {"none", *NAMES}
    assert all(d.unit for d in DISTORTIONS[1:])


@pytest.mark.parametrize(
    ("name", "amount"), [("rotation", 0), ("shift", 0), ("scale", 1), ("shear", 0)]
)
def test_distorting_by_nothing_changes_nothing(name, amount):
    batch = images()
    torch.testing.assert_close(distorted(batch, name, amount), batch, atol=1e-5, rtol=0)


def test_quarter_turns_go_one_way_and_the_other():
    batch = images()
    turned = distorted(batch, "rotation", 90)
    expected = [torch.rot90(image, (-1) ** n, (1, 2)) for n, image in enumerate(batch)]
    torch.testing.assert_close(turned, torch.stack(expected), atol=1e-4, rtol=0)


def test_shifts_go_right_left_down_and_up_with_the_edge_repeated():
    batch = images(1, size=10).repeat(4, 1, 1, 1)
    moved = distorted(batch, "shift", 20)
    right, left, down, up = moved
    for image, way in ((right, (0, 2)), (left, (0, -2)), (down, (2, 0)), (up, (-2, 0))):
        rolled = torch.roll(batch[0], way, (1, 2))
        rows = slice(max(way[0], 0), 10 + min(way[0], 0))
        columns = slice(max(way[1], 0), 10 + min(way[1], 0))
        torch.testing.assert_close(image[:, rows, columns], rolled[:, rows, columns])
    torch.testing.assert_close(right[:, :, 0], batch[0][:, :, 0])


@pytest.mark.parametrize(("factor", "side"), [(0.5, 4), (2, 16)])
def test_scale_is_magnification(factor, side):
    """A square of 8 pixels is so many pixels wide afterwards, and still in the middle."""
    batch = torch.zeros(2, 3, 32, 32)
    batch[:, :, 12:20, 12:20] = 1
    scaled = distorted(batch, "scale", factor)
    assert scaled.sum().item() == pytest.approx(2 * 3 * side**2, rel=0.02)
    torch.testing.assert_close(scaled, scaled.flip(2, 3))


def test_shear_moves_rows_by_their_height():
    batch = torch.zeros(2, 3, 33, 33)
    batch[:, :, :, 16] = 1  # an upright line
    sheared = distorted(batch, "shear", 45)
    for image, way in zip(sheared, (1, -1), strict=True):
        columns = image[0].argmax(dim=1) - 16
        assert columns.tolist() == [-way * row for row in range(-16, 17)]


def test_direction_hangs_on_the_position_not_on_the_batch():
    batch = images(1).repeat(7, 1, 1, 1)
    whole = distorted(batch, "rotation", 30)
    parts = [
        distort(some, Distortion("rotation", 30), where)
        for some, where in zip(batch.split(3), torch.arange(7).split(3), strict=True)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_distorted_images_are_channels_last():
    assert distorted(images(), "shear", 20).is_contiguous(memory_format=torch.channels_last)


def test_accuracy_falls_for_what_sees_places_and_not_for_what_sees_sums():
    """The class is the corner that a spot is in; one network looks there, the other is told."""
    labels = torch.arange(40) % 4
    spots = torch.zeros(40, 3, 16, 16)
    for n, label in enumerate(labels.tolist()):
        top, left = 8 * (label // 2) + 2, 8 * (label % 2) + 2
        spots[n, :, top : top + 4, left : left + 4] = 1 + label

    def by_place(seen):
        quarters = seen.mean(dim=1).unfold(1, 8, 8).unfold(2, 8, 8)
        return quarters.sum(dim=(3, 4)).flatten(1)

    def by_brightness(seen):
        return -(seen.amax(dim=(1, 2, 3)).unsqueeze(1) - torch.arange(1, 5)).abs()

    networks = {"place": by_place, "brightness": by_brightness}
    distortions = (UNDISTORTED, Distortion("rotation", 90), Distortion("rotation", 10))
    steps = []

    def scored(batch_size):
        batches = zip(spots.split(batch_size), labels.split(batch_size), strict=True)
        return accuracies(networks, batches, distortions, step=lambda: steps.append(1))

    found = scored(16)
    assert len(steps) == 3 * 3
    assert found[UNDISTORTED] == {"place": 1, "brightness": 1}
    assert found[distortions[1]] == {"place": 0, "brightness": 1}
    assert found[distortions[2]]["place"] == 1
    assert scored(7) == found


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        accuracies({}, [])
