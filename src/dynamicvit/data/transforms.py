"""Image to input tensor: timm's transforms with the model's own settings."""

from __future__ import annotations

import inspect
from typing import Any, cast

from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.data.auto_augment import posterize
from torch import nn

from dynamicvit.core.networks import own_image_size
from dynamicvit.data.images import Transform
from dynamicvit.errors import InputError

Size = int | tuple[int, int]


def eval_transform(
    model: nn.Module, image_size: Size | None = None, crop_pct: float | None = None
) -> Transform:
    """The transform for evaluation: resize the short side, crop the center, normalize.

    Args:
        model: its ``pretrained_cfg`` gives interpolation, mean and standard deviation.
        image_size: side, or height and width, of the crop; the model's own by default.
        crop_pct: the crop's fraction of the resized short side (0.875: 224 of 256); by default
            the one of ``pretrained_cfg``.

    Returns:
        A function from an RGB image to ``(3, height, width)``.

    Raises:
        InputError: for a size that is not positive, or a fraction outside (0, 1].
    """
    config = _config(model, image_size)
    if crop_pct is not None:
        if not 0 < crop_pct <= 1:
            raise InputError(f"crop_pct must be in (0, 1], got {crop_pct}")
        config["crop_pct"] = crop_pct
    return cast(Transform, create_transform(**config))


def train_transform(
    model: nn.Module, image_size: Size | None = None, **augmentation: Any
) -> Transform:
    """The transform for training: random resized crop and flip, and further augmentation.

    Args:
        model: as for :func:`eval_transform`.
        image_size: likewise.
        **augmentation: further arguments of :func:`timm.data.create_transform`, among them
            ``scale=(0.08, 1)``, ``hflip=0.5``, ``color_jitter=None`` (timm's own default is 0.4),
            ``auto_augment=None`` (``"rand-m9-n2-mstd0.5"``), ``re_prob=0`` (random erasing).

    Returns:
        A function from an RGB image to ``(3, height, width)``. It draws from the global random
        generators, which :class:`~dynamicvit.data.Loader` seeds for each image.

    Raises:
        InputError: for an argument that timm does not know or can't use.
    """
    settings = {**_config(model, image_size), "color_jitter": None, **augmentation}
    known = inspect.signature(create_transform).parameters
    unknown = sorted(augmentation.keys() - known.keys())
    if unknown:
        raise InputError(f"unknown augmentation {unknown[0]!r}; timm knows {', '.join(known)}")
    try:
        transform = create_transform(is_training=True, **settings)
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"augmentation {augmentation} can't be used: {reason}") from error
    _posterize_to_a_bit(transform)
    return cast(Transform, transform)


def _posterize_to_a_bit(transform: Any) -> None:
    """Keep at least one bit of each channel in timm's posterize.

    At its strongest it keeps none: a black image until Pillow 13, an error since. The paper's
    augmentation draws it for one image in some hundreds.
    """
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):  # of RandAugment
            if getattr(op, "aug_fn", None) is posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **arguments: Any) -> Image.Image:
    return posterize(image, max(1, bits), **arguments)


def _config(model: nn.Module, image_size: Size | None) -> dict[str, Any]:
    """timm's settings for a model, at a size or its own."""
    config = resolve_model_data_config(model)
    size = own_image_size(model) if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise InputError(f"image size must be positive, got {image_size}")
    config["input_size"] = (config["input_size"][0], height, width)
    return config
