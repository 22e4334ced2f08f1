"""Transforms of clips: views, the same augmentation for all frames, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from dynamicvit.data import (
    Sampling,
    Views,
    clip_eval_transform,
    clip_train_transform,
    eval_transform,
)
from dynamicvit.errors import InputError

SAMPLING = Sampling(3)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32)


def still(height: int, width: int, frames: int = 3, clips: int = 1) -> Tensor:
    """Clips whose frames are all one picture of noise."""
    torch.manual_seed(0)
    picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return picture.expand(clips, frames, -1, -1, -1).clone()


def pixels(height: int, width: int, long: int) -> Tensor:
    """A clip whose first channel counts along the longer side, of index ``long``."""
    clip = torch.zeros(1, 3, 3, height, width, dtype=torch.uint8)
    side = torch.arange((height, width)[long], dtype=torch.uint8)
    clip[:, :, 0] = side[:, None] if long == 0 else side
    return clip


def test_one_view_is_what_images_have(model: nn.Module) -> None:
    """Resize, center crop and normalization are those of ``eval_transform``."""
    clip = still(60, 90)
    found = clip_eval_transform(model, SAMPLING, image_size=32)(clip)
    assert found.shape == (3, 3, 32, 32)
    expected = eval_transform(model, 32)(to_pil_image(clip[0, 0]))
    assert (found[0] - expected).abs().mean() < 0.02  # Pillow's bicubic and torch's
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("long", [0, 1])
def test_three_crops_lie_along_the_longer_side(model: nn.Module, long: int) -> None:
    size = (96, 32) if long == 0 else (32, 96)
    transform = clip_eval_transform(model, SAMPLING, image_size=32, crops=3, clips=2)
    assert transform.views == Views(2, 3)
    assert (transform.views.total, str(transform.views)) == (6, "2 × 3")
    found = transform(torch.cat([pixels(*size, long), pixels(*size, long) + 100]))
    assert found.shape == (6, 3, 3, 32, 32)
    mean, std = (model.pretrained_cfg[name][0] for name in ("mean", "std"))
    starts = (255 * (found[:, 0, 0, 0, 0] * std + mean)).round().tolist()
    assert starts == [0, 32, 64, 100, 132, 164]


def test_a_square_has_its_whole_in_three_crops(model: nn.Module) -> None:
    found = clip_eval_transform(model, SAMPLING, image_size=32, crops=3)(still(32, 32))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


EVERYTHING: dict[str, Any] = {
    "auto_augment": "rand-m7-n4-mstd0.5-inc1",
    "color_jitter": 0.4,
    "re_prob": 1.0,
}


@pytest.mark.parametrize("seed", range(6))
def test_all_frames_have_the_same_augmentation(model: nn.Module, seed: int) -> None:
    clip = still(40, 56)
    torch.manual_seed(seed)
    found = clip_train_transform(model, SAMPLING, image_size=32, **EVERYTHING)(clip)
    assert found.shape == (3, 3, 32, 32)
    assert found.dtype == torch.float32
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.manual_seed(seed + 100)
    again = clip_train_transform(model, SAMPLING, image_size=32, **EVERYTHING)(clip)
    assert not torch.equal(found, again)


def test_every_operation_of_rand_augment_takes_a_clip(model: nn.Module) -> None:
    transform = clip_train_transform(model, SAMPLING, image_size=32, auto_augment="rand-m10-n8")
    for seed in range(20):
        torch.manual_seed(seed)
        assert transform(still(32, 32)).isfinite().all()


def test_left_stays_left_without_flips(model: nn.Module) -> None:
    """Something-Something tells left from right."""
    clip = pixels(32, 32, long=1)
    options = {"image_size": 32, "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for seed in range(8):
        torch.manual_seed(seed)
        found = clip_train_transform(model, SAMPLING, hflip=0.0, **options)(clip)
        assert found[0, 0, 0, 0] < found[0, 0, 0, -1]
    flipped = clip_train_transform(model, SAMPLING, hflip=1.0, **options)(clip)
    assert flipped[0, 0, 0, 0] > flipped[0, 0, 0, -1]


def test_training_has_one_clip(model: nn.Module) -> None:
    assert clip_train_transform(model, SAMPLING).views is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"auto_augment": "augmix-m3"},
        {"auto_augment": "rand-m99"},
        {"auto_augment": "rand-m9-x3"},
        {"hflip": 1.5},
        {"re_prob": -1.0},
        {"image_size": 0},
    ],
)
def test_augmentation_that_can_not_be(model: nn.Module, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        clip_train_transform(model, SAMPLING, **wrong)


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"crops": 2}, {"crop_pct": 0.0}])
def test_views_that_can_not_be(model: nn.Module, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="got"):
        clip_eval_transform(model, SAMPLING, **wrong)


def test_clips_have_three_channels() -> None:
    gray = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1)
    with pytest.raises(InputError, match="the model takes 1"):
        clip_eval_transform(gray, SAMPLING)
