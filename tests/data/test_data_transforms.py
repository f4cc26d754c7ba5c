import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from capsprune.data.augmentation import Augmentation
from capsprune.data.names import DATA_SETS, data_set
from capsprune.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from capsprune.data.transforms import (
    AugmentationParameters,
    EvaluationTransform,
    TrainingTransform,
    to_channels,
)
from capsprune.errors import DataError


def images(count=4, height=12, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def identity(count):
    return AugmentationParameters(
        flip=torch.zeros(count, dtype=torch.bool),
        affine=torch.eye(2, 3).repeat(count, 1, 1),
        brightness=torch.zeros(count),
        contrast=torch.ones(count),
    )


def unit(normalised):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return normalised * std + mean


def test_evaluation_only_normalises_an_image_of_the_right_size():
    batch = images()
    out = EvaluationTransform(Preprocessing(12))(batch)
    assert out.dtype == torch.float32
    torch.testing.assert_close(unit(out), batch / 255)


@pytest.mark.parametrize("size", [6, 12, 25])
@pytest.mark.parametrize("shape", [(12, 12), (9, 16)])
def test_evaluation_resizes_like_torch(size, shape):
    batch = images(2, *shape)
    out = EvaluationTransform(Preprocessing(size))(batch)
    assert out.shape == (2, 3, size, size)
    expected = functional.interpolate(
        batch / 255, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    torch.testing.assert_close(unit(out), expected, atol=1e-5, rtol=1e-5)


GREY = Preprocessing(12, mean=(0.0,), std=(1.0,))
AUGMENTATION = Augmentation(
    flip=True, translation=0.1, rotation=10.0, scale=(0.9, 1.1), brightness=0.2, contrast=(0.5, 1.5)
)


def test_grey_images_stay_one_channel_bit_for_bit_where_a_network_takes_one():
    grey = images()[:, :1]
    out = EvaluationTransform(GREY)(grey)
    assert out.shape == (4, 1, 12, 12)
    assert torch.equal(out, grey.to(torch.float32) / 255)


@pytest.mark.parametrize("size", [9, 12, 20])
def test_grey_images_are_shown_three_times_where_a_network_takes_colours(size):
    grey = images()[:, :1]
    for transform in (
        EvaluationTransform(Preprocessing(size)),
        TrainingTransform(AUGMENTATION, Preprocessing(size)),
    ):
        torch.manual_seed(0)
        shown = transform(grey)
        torch.manual_seed(0)
        # As they were stored before: one channel three times.
        assert torch.equal(shown, transform(grey.repeat(1, 3, 1, 1)))


def test_colours_become_the_luma_that_pillow_gives_where_a_network_takes_one_channel():
    batch = images(3, 20, 21)
    expected = [np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).convert("L")) for i in batch]
    grey = to_channels(batch, 1)
    assert grey.shape == (3, 1, 20, 21) and grey.dtype == torch.uint8
    assert np.array_equal(grey[:, 0].numpy(), np.stack(expected))


def test_luma_of_three_channels_that_are_the_same_is_any_of_them():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_channels(to_channels(grey, 3), 1), grey)
    assert to_channels(grey, 1) is grey


def test_augmentation_of_one_channel_is_that_of_each_of_three():
    grey = images()[:, :1]
    plain = Preprocessing(12, (0.0,) * 3, (1.0,) * 3)
    torch.manual_seed(3)
    single = TrainingTransform(AUGMENTATION, GREY)(grey)
    torch.manual_seed(3)
    triple = TrainingTransform(AUGMENTATION, plain)(grey)
    assert single.shape == (4, 1, 12, 12)
    torch.testing.assert_close(single, triple[:, 1:2])


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (1.0,) * 3), ((0.0,) * 2, (1.0,) * 2), ((), ())]
)
def test_a_mean_for_another_number_of_channels_is_refused(mean, std):
    with pytest.raises(ValueError, match="1 or 3 colour channels"):
        Preprocessing(12, mean, std)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 5),
    height=st.integers(2, 20),
    width=st.integers(2, 20),
    size=st.integers(2, 24),
)
def test_identity_parameters_give_the_evaluation_transform(count, height, width, size):
    batch = images(count, height, width)
    transform = TrainingTransform(Augmentation(), Preprocessing(size))
    expected = EvaluationTransform(Preprocessing(size))(batch)
    torch.testing.assert_close(transform(batch), expected)
    torch.testing.assert_close(
        transform.augment(batch, identity(count)), expected, atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", [*DATA_SETS, "imagefolder:/x"])
def test_every_data_set_has_an_augmentation_sampled_for_each_image(name):
    transform = TrainingTransform(data_set(name).augmentation, Preprocessing(16))
    same = images(1).repeat(8, 1, 1, 1)
    torch.manual_seed(3)
    first = transform(same)
    assert first.shape == (8, 3, 16, 16) and first.dtype == torch.float32
    assert any(not torch.equal(first[0], other) for other in first[1:])
    assert unit(first).min() >= -1e-5 and unit(first).max() <= 1 + 1e-5
    torch.manual_seed(3)
    assert torch.equal(transform(same), first)
    assert not torch.equal(transform(same), first)


def test_images_of_a_batch_do_not_mix():
    batch = images(3)
    transform = TrainingTransform(data_set("digits").augmentation, Preprocessing(16))
    parameters = transform.sample(3)
    together = transform.augment(batch, parameters)
    for position in range(3):
        one = AugmentationParameters(affine=parameters.affine[position : position + 1])
        alone = transform.augment(batch[position : position + 1], one)
        torch.testing.assert_close(alone[0], together[position])


def test_flip_mirrors_the_chosen_images():
    batch = images(2)
    transform = TrainingTransform(Augmentation(flip=True), Preprocessing(12))
    out = transform.augment(batch, AugmentationParameters(flip=torch.tensor([True, False])))
    plain = EvaluationTransform(Preprocessing(12))(batch)
    assert torch.equal(out[0], plain[0].flip(2))
    assert torch.equal(out[1], plain[1])


def test_brightness_and_contrast_do_what_they_say_and_clamp():
    batch = torch.full((1, 3, 4, 4), 102, dtype=torch.uint8)
    batch[..., :2] = 51
    transform = TrainingTransform(Augmentation(), Preprocessing(4))

    def apply(**parameters):
        parameters = {key: torch.tensor([value]) for key, value in parameters.items()}
        return unit(transform.augment(batch, AugmentationParameters(**parameters)))[0, 0, 0]

    torch.testing.assert_close(apply(brightness=0.25), torch.tensor([0.45, 0.45, 0.65, 0.65]))
    torch.testing.assert_close(apply(contrast=0.5), torch.tensor([0.25, 0.25, 0.35, 0.35]))
    torch.testing.assert_close(apply(brightness=-0.3), torch.tensor([0.0, 0.0, 0.1, 0.1]))


def test_quarter_turn_moves_pixels_by_a_quarter_turn():
    batch = images(1)
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    out = TrainingTransform(Augmentation(), Preprocessing(12)).augment(
        batch, AugmentationParameters(affine=turn)
    )
    plain = EvaluationTransform(Preprocessing(12))(batch)
    assert min(
        (out - torch.rot90(plain, turns, (2, 3))).abs().max() for turns in (1, 3)
    ) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", list(DATA_SETS))
def test_drawn_parameters_stay_in_their_ranges(name):
    ranges = data_set(name).augmentation
    parameters = TrainingTransform(ranges, Preprocessing(16)).sample(500)
    assert (parameters.flip is not None) == ranges.flip
    if ranges.is_affine:
        a, b, x = parameters.affine[:, 0].unbind(1)
        step = (a.square() + b.square()).sqrt()
        low, high = ranges.scale
        assert step.max() <= 1 / low + 1e-5
        assert step.min() >= math.sqrt(ranges.crop) / high - 1e-5
        assert torch.atan2(b, a).abs().max() <= math.radians(ranges.rotation) + 1e-5
        assert x.abs().max() <= 2 * ranges.translation + 1 - math.sqrt(ranges.crop) + 1e-5
    if ranges.crop != 1:  # a crop never reaches outside the image
        assert (step + x.abs()).max() <= 1 + 1e-5
    if parameters.contrast is not None:
        assert parameters.contrast.min() >= 0.2 and parameters.contrast.max() <= 1.8
        assert parameters.brightness.abs().max() <= 0.25


def test_transform_has_no_state():
    assert not TrainingTransform(data_set("cifar10").augmentation, Preprocessing(8)).state_dict()


def test_unknown_data_set():
    with pytest.raises(DataError, match=r"Unknown data set 'digit'; did you mean digits"):
        TrainingTransform(data_set("digit").augmentation, Preprocessing(32))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_network_says_how_its_images_are_shown(interpolation):
    batch = images(2, 9, 9)
    shown = Preprocessing(14, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation)
    expected = functional.interpolate(batch / 255, (14, 14), mode=interpolation).clamp(0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shown.mean, shown.std))
    out = EvaluationTransform(shown)(batch)
    torch.testing.assert_close(out, (expected - mean) / std)
    training = TrainingTransform(Augmentation(), shown)
    torch.testing.assert_close(training(batch), out)
    moved = training.augment(batch, identity(2))  # sampled by a grid that does not move
    assert (moved * std + mean).min() >= -1e-6 and (moved * std + mean).max() <= 1 + 1e-6
    # The two kinds of cubic curves differ a little.
    assert (moved - out).abs().max() < (1e-4 if interpolation == "bilinear" else 0.5)
