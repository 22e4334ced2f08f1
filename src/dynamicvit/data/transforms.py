"""Image to input tensor: timm's transforms with the model's own settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import ColorJitter, Compose, RandomApply, RandomGrayscale

from dynamicvit.core.networks import image_channels, own_image_size
from dynamicvit.data.decoding import MODES, decode
from dynamicvit.errors import InputError
from dynamicvit.utils.fields import CROP

Size = int | tuple[int, int]

#: timm's operations that move pixels; the others change their colors.
_MOVING = {
    op
    for name, op in auto_augment.NAME_TO_OP.items()
    if name.startswith(("Rotate", "Shear", "Translate"))
}


class ModelTransform(Compose):
    """timm's transforms for images of a model's channels.

    Args:
        transforms: timm's.
        mode: Pillow's, of the images that the transforms take.
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]], mode: str) -> None:
        super().__init__(transforms)
        self.mode = mode

    def __call__(self, image: Image.Image) -> Tensor:
        """``(C, height, width)`` of a Pillow image of any mode."""
        prepared: Any = super().__call__(decode(image, self.mode))
        return prepared


def eval_transform(
    model: nn.Module, image_size: Size | None = None, crop_pct: float | None = None
) -> ModelTransform:
    """The transform for evaluation: resize the short side, crop the center, normalize.

    Args:
        model: its ``pretrained_cfg`` gives interpolation, mean and standard deviation.
        image_size: side, or height and width, of the crop; the model's own by default.
        crop_pct: the crop's fraction of the resized short side (0.875: 224 of 256); by default
            the one of ``pretrained_cfg``.

    Returns:
        A function from a Pillow image of any mode to ``(C, height, width)``.

    Raises:
        InputError: for a size that is not positive, a fraction outside (0, 1], or a model of other
            than 1, 3 or 4 channels.
    """
    config = image_config(model, image_size)
    if crop_pct is not None:
        if not CROP.holds(crop_pct):
            raise InputError(f"crop_pct must be {CROP.words}, got {crop_pct}")
        config["crop_pct"] = crop_pct
    transform: Any = create_transform(**config)
    return ModelTransform(transform.transforms, _mode(config))


def train_transform(
    model: nn.Module, image_size: Size | None = None, **augmentation: Any
) -> ModelTransform:
    """The transform for training: random resized crop and flip, and further augmentation.

    Args:
        model: as for :func:`eval_transform`.
        image_size: likewise.
        **augmentation: further arguments of :func:`timm.data.create_transform`, among them
            ``scale=(0.08, 1)``, ``hflip=0.5``, ``color_jitter=None`` (timm's own default is 0.4),
            ``auto_augment=None`` (``"rand-m9-n2-mstd0.5"``), ``re_prob=0`` (random erasing).

    Returns:
        A function from a Pillow image of any mode to ``(C, height, width)``. It draws from the
        global random generators, which :class:`~dynamicvit.data.Loader` seeds for each image.

    Raises:
        InputError: for an argument that timm does not know or can't use, and as for
            :func:`eval_transform`.
    """
    config = image_config(model, image_size)
    settings = {**config, "color_jitter": None, **augmentation}
    known = inspect.signature(create_transform).parameters
    unknown = sorted(augmentation.keys() - known.keys())
    if unknown:
        raise InputError(f"unknown augmentation {unknown[0]!r}; timm knows {', '.join(known)}")
    try:
        transform: Any = create_transform(is_training=True, **settings)
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"augmentation {augmentation} can't be used: {reason}") from error
    for op in _ops(transform):
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = _posterize
    mode = _mode(config)
    if mode == "RGBA":
        _spare_alpha(transform)
    return ModelTransform(transform.transforms, mode)


def image_config(model: nn.Module, image_size: Size | None = None) -> dict[str, Any]:
    """timm's settings for a model, at a size or its own, for the channels that it takes.

    The channels that ``pretrained_cfg`` gives no mean and standard deviation for, as of a network
    that was made with ``in_chans``, have the average of those it gives.

    Raises:
        InputError: for a size that is not positive.
    """
    config = resolve_model_data_config(model)
    size = own_image_size(model) if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise InputError(f"image size must be positive, got {image_size}")
    channels = image_channels(model)
    config["input_size"] = (channels, height, width)
    for name in ("mean", "std"):
        config[name] = _of_each(tuple(config[name]), channels)
    return config


def unnormalized(
    model: nn.Module,
    images: Tensor,
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Tensor:
    """Images as a model takes them, ``(..., C, H, W)``, as pictures in [0, 1].

    Args:
        model: its ``pretrained_cfg`` gives mean and standard deviation.
        images: normalized.
        mean_std: of each channel, in place of the model's.
    """
    config = image_config(model)
    both = mean_std or (config["mean"], config["std"])
    mean, std = (images.new_tensor(value).reshape(-1, 1, 1) for value in both)
    return (images * std + mean).clamp(0, 1)


def _of_each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    missing = channels - len(values)
    if not missing:
        return values
    average = sum(values) / len(values)
    return (*values, *[average] * missing) if missing > 0 else (average,) * channels


def _mode(config: dict[str, Any]) -> str:
    channels = config["input_size"][0]
    if channels not in MODES:
        raise InputError(f"images have 1, 3 or 4 channels; the model takes {channels}")
    return MODES[channels]


def _ops(transform: Any) -> Iterator[Any]:
    """timm's operations on single images, of RandAugment, AutoAugment or AugMix."""
    for step in transform.transforms:
        yield from getattr(step, "ops", ())
        for policy in getattr(step, "policy", ()):
            yield from policy


def _posterize(image: Image.Image, bits: int, **arguments: Any) -> Image.Image:
    """timm's posterize with at least one bit of each channel.

    At its strongest it keeps none: a black image until Pillow 13, an error since. The paper's
    augmentation draws it for one image in some hundreds.
    """
    return auto_augment.posterize(image, max(1, bits), **arguments)


def _spare_alpha(transform: Any) -> None:
    """Let what changes colors, for which Pillow wants an image without alpha, leave alpha alone."""
    for op in _ops(transform):
        if op.aug_fn not in _MOVING:
            op.aug_fn = partial(_on_colors, op.aug_fn)
    transform.transforms = [
        partial(_on_colors, step)
        if isinstance(step, ColorJitter | RandomApply | RandomGrayscale)
        else step
        for step in transform.transforms
    ]


def _on_colors(
    change: Callable[..., Image.Image], image: Image.Image, *values: Any, **arguments: Any
) -> Image.Image:
    changed = change(image.convert("RGB"), *values, **arguments)
    changed.putalpha(image.getchannel("A"))
    return changed
