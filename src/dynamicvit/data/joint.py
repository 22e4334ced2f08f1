"""Image and mask to tensors: torchvision's transforms (v2), the same for both."""

from __future__ import annotations

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from dynamicvit.data.decoding import MODES, decode
from dynamicvit.data.sources import UNLABELED
from dynamicvit.data.transforms import Size, eval_transform, image_config

_BILINEAR = v2.InterpolationMode.BILINEAR


class Joint:
    """torchvision's transforms of an image of a model's channels and of its mask.

    Args:
        transforms: of both.
        config: of :func:`~dynamicvit.data.transforms.image_config`.

    Attributes:
        mode: Pillow's, of the images that it takes.
    """

    def __init__(self, transforms: list[nn.Module], config: dict[str, Any]) -> None:
        self.mode = MODES[config["input_size"][0]]
        normalize = v2.Normalize(config["mean"], config["std"])
        ends = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
        self.transforms = v2.Compose([*transforms, *ends, normalize])

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        """``(C, height, width)`` and ``(height, width)``."""
        pixels = tv_tensors.Image(v2.functional.pil_to_tensor(decode(image, self.mode)))
        image_out, mask_out = self.transforms(pixels, tv_tensors.Mask(mask))
        return image_out.as_subclass(Tensor), mask_out.as_subclass(Tensor)


def joint_train_transform(
    model: nn.Module,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    hflip: float = 0.5,
    photometric: float = 0.5,
) -> Joint:
    """Scale, crop, flip and color, as segmentation models are trained (Segmenter, Section 4.1).

    A smaller image is padded: its padding has no class.

    Args:
        model: whose image size, mean and standard deviation count.
        scale: least and greatest length of the resized short side, in crops.
        hflip: probability of a mirror image.
        photometric: probability of each change of brightness, contrast, saturation and hue.
    """
    config = image_config(model)
    crop = config["input_size"][1:]
    least, greatest = (max(1, round(min(crop) * share)) for share in scale)
    resize = (
        v2.Resize(least, _BILINEAR)
        if least == greatest
        else v2.RandomResize(least, greatest + 1, _BILINEAR)
    )
    gray = [round(255 * mean) for mean in config["mean"]]
    fill: Any = {tv_tensors.Image: gray, tv_tensors.Mask: UNLABELED}
    steps = [
        resize,
        v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(hflip),
    ]
    if photometric and len(gray) == 3:
        steps.append(v2.RandomPhotometricDistort(p=photometric))
    return Joint(steps, config)


class _FillWindow(nn.Module):
    """Resizes an image, without its mask, so that it just fills a window of height and width."""

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The image resized, the mask as it is."""
        height, width = image.shape[-2:]
        scale = max(self.window[0] / height, self.window[1] / width)
        size = [
            max(least, round(side * scale))
            for least, side in zip(self.window, (height, width), strict=True)
        ]
        return v2.functional.resize(image, size, _BILINEAR), mask


def joint_eval_transform(model: nn.Module, image_size: Size | None = None) -> Joint:
    """The whole image at the scale at which it just fills the model's window; the mask as it is.

    Args:
        model: as for :func:`joint_train_transform`.
        image_size: of the window; the model's own by default.
    """
    config = image_config(model, image_size)
    return Joint([_FillWindow(config["input_size"][1:])], config)


def centered_mask(
    model: nn.Module, mask: Tensor, image_size: Size | None = None, crop_pct: float | None = None
) -> Tensor:
    """A mask ``(H, W)`` resized and cropped as :func:`eval_transform` does it with its image."""
    for step in eval_transform(model, image_size, crop_pct).transforms:
        if hasattr(step, "size"):
            step = copy.copy(step)
            if hasattr(step, "interpolation"):
                step.interpolation = v2.InterpolationMode.NEAREST
            mask = step(mask[None])[0]
    return mask
