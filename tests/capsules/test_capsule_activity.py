import pytest
import torch

from capsprune.capsules.activity import ACTIVE_LENGTH, CapsuleActivity


def test_a_capsule_that_is_active_once_is_not_dead():
    u = torch.zeros(6, 4, 3)
    u[:, 0, 1] = 0.9
    u[4, 1] = torch.tensor([0.0, -0.3, 0.4])  # active on one image of a later batch
    u[:, 2, 0] = ACTIVE_LENGTH  # as long as the threshold is not above it
    activity = CapsuleActivity()
    for batch in u.split(4):
        activity.update(batch)
    assert activity.capsules == 4
    assert activity.dead == 2
    assert activity.mean_length == pytest.approx((6 * 0.9 + 0.5 + 6 * ACTIVE_LENGTH) / 24)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        _ = CapsuleActivity().dead
