"""Clip to input tensor: torchvision's transforms (v2), the same for all frames of a clip."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data.transforms import str_to_interp_mode
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from dynamicvit.data.transforms import Size, image_config
from dynamicvit.data.video.sampling import Sampling, Timeline
from dynamicvit.errors import InputError
from dynamicvit.utils.fields import CROP

#: timm's scale of RandAugment's magnitudes, and the index of torchvision's highest.
_TIMM_HIGHEST, _HIGHEST = 10, 30


class Views(NamedTuple):
    """How many clips of a video are evaluated, and how many crops of each.

    The cost of an answer is that of one view times :attr:`total`, which tables say beside it.
    """

    clips: int = 1
    crops: int = 1

    @property
    def total(self) -> int:
        """Forward passes for one video."""
        return self.clips * self.crops

    def __str__(self) -> str:
        return f"{self.clips} × {self.crops}"


ONE_VIEW = Views()


class ClipTransform:
    """Chooses frames of a video, and makes a tensor of them.

    Args:
        sampling: of the frames.
        crops: from a clip ``(T, 3, H, W)`` uint8 to float tensors ``(T, 3, height, width)``; by
            default to the whole pictures in [0, 1].
        views: of each video; None for one random clip, in training.
    """

    def __init__(
        self,
        sampling: Sampling,
        crops: Callable[[Tensor], Sequence[Tensor]] | None = None,
        views: Views | None = ONE_VIEW,
    ) -> None:
        self.sampling = sampling
        self.crops = crops or _whole
        self.views = views

    def choose(self, timeline: Timeline) -> np.ndarray:
        """``(clips, T)`` indices of frames."""
        if self.views is None:
            return self.sampling.random_clip(timeline)
        return self.sampling.even_clips(timeline, self.views.clips)

    def __call__(self, clips: Tensor) -> Tensor:
        """``(T, 3, height, width)``, or with several views ``(V, T, 3, height, width)``.

        Args:
            clips: ``(clips, T, 3, H, W)`` uint8. The crops of the first clip come first.
        """
        views = [view for clip in clips for view in self.crops(clip)]
        return views[0] if len(views) == 1 else torch.stack(views)


def clip_eval_transform(
    model: nn.Module,
    sampling: Sampling,
    *,
    image_size: Size | None = None,
    crop_pct: float | None = None,
    clips: int = 1,
    crops: int = 1,
) -> ClipTransform:
    """The transform for evaluation: clips, evenly spaced, and crops of each.

    Args:
        model: its ``pretrained_cfg`` gives interpolation, mean and standard deviation.
        sampling: of the frames.
        image_size: side, or height and width, of the crop; the model's own by default.
        crop_pct: the crop's fraction of the resized short side, for one crop; by default the one of
            ``pretrained_cfg``.
        clips: of a video: 5 for VideoMAE on Kinetics-400, 2 on Something-Something V2.
        crops: 1 is the center crop. 3 (SlowFast, Feichtenhofer et al. 2019, Section 4) have the
            whole short side, and lie at the start, the middle and the end of the longer one.

    Raises:
        InputError: for another number of crops or fewer than one clip, and as for
            :func:`~dynamicvit.data.eval_transform`.
    """
    if clips < 1 or crops not in (1, 3):
        raise InputError(f"a video has 1 or more clips and 1 or 3 crops, got {clips} × {crops}")
    config = _clip_config(model, image_size)
    share = config["crop_pct"] if crop_pct is None else crop_pct
    if not CROP.holds(share):
        raise InputError(f"crop_pct must be {CROP.words}, got {share}")
    return ClipTransform(sampling, _Crops(config, crops, share), Views(clips, crops))


def clip_train_transform(
    model: nn.Module,
    sampling: Sampling,
    *,
    image_size: Size | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    color_jitter: float | None = None,
    auto_augment: str | None = None,
    re_prob: float = 0.0,
) -> ClipTransform:
    """The transform for training: random resized crop, flip, and further augmentation.

    All frames of a clip have the same crop, flip, colors and erased place. VideoMAE's fine-tuning
    (Tong et al. 2022, Appendix) has ``auto_augment="rand-m7-n4-mstd0.5-inc1"``, ``re_prob=0.25``
    and, on Something-Something, ``hflip=0``.

    Args:
        model: as for :func:`clip_eval_transform`.
        sampling: of the frames.
        image_size: side, or height and width, of the crop; the model's own by default.
        scale: least and greatest share of the picture's area that the crop has.
        ratio: least and greatest width / height of the crop before it is resized.
        hflip: probability of a mirror image; 0 where left and right are told apart by class.
        color_jitter: of brightness, contrast and saturation, as timm's.
        auto_augment: RandAugment in timm's words, ``rand-m9-n2-mstd0.5``: the magnitude of 10, the
            number of operations, the standard deviation of the magnitude, drawn for a clip;
            ``inc1`` is always so in torchvision.
        re_prob: probability that one rectangle is erased, in favor of noise.

    Raises:
        InputError: for an argument that can't be used.
    """
    config = _clip_config(model, image_size)
    interpolation = _interpolation(config)
    try:
        steps = [
            v2.RandomResizedCrop(config["input_size"][1:], scale, ratio, interpolation),
            v2.RandomHorizontalFlip(hflip),
        ]
        if color_jitter:
            steps.append(v2.ColorJitter(*[color_jitter] * 3))
        if auto_augment:
            gray = [round(255 * mean) for mean in config["mean"]]
            steps.append(_rand_augment(auto_augment, gray))
        erasing = [v2.RandomErasing(re_prob, (0.02, 1 / 3), value="random")] if re_prob else []
    except (TypeError, ValueError) as error:
        raise InputError(f"augmentation of clips can't be used: {error}") from error
    augment = v2.Compose([*steps, *_ends(config), *erasing])
    return ClipTransform(sampling, _Augmented(augment), None)


class _Augmented:
    def __init__(self, augment: nn.Module) -> None:
        self.augment = augment

    def __call__(self, clip: Tensor) -> list[Tensor]:
        return [self.augment(tv_tensors.Video(clip)).as_subclass(Tensor)]


class _Crops:
    """The center crop, or three along the longer side."""

    def __init__(self, config: dict[str, Any], crops: int, crop_pct: float) -> None:
        self.size = config["input_size"][1:]
        self.count = crops
        share = crop_pct if crops == 1 else 1.0
        self.filled = [math.floor(side / share) for side in self.size]
        self.interpolation = _interpolation(config)
        self.ends = v2.Compose(_ends(config))

    def __call__(self, clip: Tensor) -> list[Tensor]:
        pixels = clip.shape[-2:]
        scale = max(a / b for a, b in zip(self.filled, pixels, strict=True))
        size = [max(a, round(b * scale)) for a, b in zip(self.size, pixels, strict=True)]
        clip = v2.functional.resize(clip, size, self.interpolation)
        room = [b - a for a, b in zip(self.size, size, strict=True)]
        places = [0.5] if self.count == 1 else [0.0, 0.5, 1.0]
        long = int(room[1] >= room[0])
        views = []
        for place in places:
            top, left = (
                round(each * (place if axis == long else 0.5)) for axis, each in enumerate(room)
            )
            crop = clip[..., top : top + self.size[0], left : left + self.size[1]].contiguous()
            views.append(self.ends(tv_tensors.Video(crop)).as_subclass(Tensor))
        return views


class _RandAugment(v2.RandAugment):
    """RandAugment whose magnitude varies from clip to clip."""

    def __init__(self, operations: int, magnitude: float, deviation: float, fill: Any) -> None:
        super().__init__(operations, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
        self.mean, self.deviation = magnitude, deviation

    def forward(self, *inputs: Any) -> Any:
        """The clip, each frame under the same operations."""
        drawn = self.mean + self.deviation * float(torch.randn(()))
        share = min(max(drawn, 0), _TIMM_HIGHEST) / _TIMM_HIGHEST
        self.magnitude = round(share * _HIGHEST)
        return super().forward(*inputs)


def _rand_augment(words: str, fill: Any) -> nn.Module:
    """torchvision's RandAugment for timm's words."""
    found = {"m": 9.0, "n": 2.0, "mstd": 0.0, "inc": 1.0}
    kind, *parts = words.split("-")
    for part in parts:
        match = re.fullmatch(r"(mstd|inc|m|n)(\d+(?:\.\d+)?)", part)
        if match is None:
            kind = ""
        else:
            found[match[1]] = float(match[2])
    if kind != "rand" or found["m"] > _TIMM_HIGHEST or found["n"] % 1 or found["inc"] != 1:
        raise InputError(
            f"auto_augment of clips is RandAugment, as rand-m9-n2-mstd0.5 (m up to "
            f"{_TIMM_HIGHEST}), got {words!r}"
        )
    return _RandAugment(int(found["n"]), found["m"], found["mstd"], fill)


def _clip_config(model: nn.Module, image_size: Size | None) -> dict[str, Any]:
    config = image_config(model, image_size)
    if config["input_size"][0] != 3:
        raise InputError(f"clips have 3 channels; the model takes {config['input_size'][0]}")
    return config


def _interpolation(config: dict[str, Any]) -> Any:
    return str_to_interp_mode(config["interpolation"])


def _ends(config: dict[str, Any]) -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config["mean"], config["std"])]


def _whole(clip: Tensor) -> list[Tensor]:
    return [clip.float() / 255]
