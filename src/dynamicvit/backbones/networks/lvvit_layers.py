"""The layers of LV-ViT that timm lacks: convolutional stem and divided residual branches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, nchw_to, to_2tuple
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dynamicvit.errors import InputError


class ConvStem(PatchEmbed):
    """Four convolutions instead of one: ``(B, channels, height, width)`` to ``(B, N, C)``.

    The first halves the image, two keep its size, and the last projects patches of half the side.
    Batch norm and ReLU follow the first three.

    Args:
        img_size: side of the images, or height and width; multiples of the patch's.
        patch_size: side of a patch, or height and width; even.
        in_chans: channels of the images.
        embed_dim: C.
        stem_width: channels between the convolutions.
        **kwargs: of timm's ``PatchEmbed``.

    Raises:
        InputError: for odd patch sides, or images that are not whole patches.
    """

    if TYPE_CHECKING:  # torch.jit does not support these annotations
        img_size: tuple[int, int]
        patch_size: tuple[int, int]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 384,
        stem_width: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, **kwargs)
        if any(side % 2 for side in self.patch_size):
            raise InputError(f"LV-ViT's patches have even sides, got patch_size={patch_size}")
        self._check_whole_patches(self.img_size)
        factory = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        bias = self.proj.bias is not None
        del self.proj  # and register it last, so that modules are listed in the order they run
        self.conv1 = nn.Conv2d(in_chans, stem_width, 7, stride=2, padding=3, bias=False, **factory)
        self.bn1 = nn.BatchNorm2d(stem_width, **factory)
        self.conv2 = nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False, **factory)
        self.bn2 = nn.BatchNorm2d(stem_width, **factory)
        self.conv3 = nn.Conv2d(stem_width, stem_width, 3, padding=1, bias=False, **factory)
        self.bn3 = nn.BatchNorm2d(stem_width, **factory)
        halved = (self.patch_size[0] // 2, self.patch_size[1] // 2)
        self.proj = nn.Conv2d(stem_width, embed_dim, halved, halved, bias=bias, **factory)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, N, C)``, or ``(B, rows, columns, C)`` with ``dynamic_img_size``."""
        height, width = images.shape[-2:]
        rows, columns = self.patch_size
        if self.strict_img_size:
            torch._assert(
                (height, width) == self.img_size,
                f"images of {height}x{width}, but the network takes "
                f"{self.img_size[0]}x{self.img_size[1]}",
            )
        elif self.dynamic_img_pad:
            images = F.pad(images, [0, -width % columns, 0, -height % rows])
        else:
            torch._assert(
                height % rows == 0 and width % columns == 0,
                f"images of {height}x{width} are not whole patches of {rows}x{columns}",
            )
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2) if self.flatten else nchw_to(x, self.output_fmt)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the image size.

        Raises:
            InputError: for another patch size, or images that are not whole patches.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise InputError(
                f"LV-ViT's patches are {self.patch_size}, got patch_size={patch_size}; create the "
                f"network with it"
            )
        self._check_whole_patches(None if img_size is None else to_2tuple(img_size))
        super().set_input_size(img_size=img_size)

    def _check_whole_patches(self, size: tuple[int, int] | None) -> None:
        if size is None or not self.strict_img_size:
            return
        if any(side % patch for side, patch in zip(size, self.patch_size, strict=True)):
            raise InputError(
                f"img_size={size} is not a multiple of LV-ViT's patches {self.patch_size}"
            )


class Divide(nn.Module):
    """``x / divisor``."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        return x / self.divisor

    def extra_repr(self) -> str:
        return f"{self.divisor}"


class DividedBlock(Block):
    """timm's block, with both residual branches divided by a constant."""

    def __init__(self, *, residual_divisor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Instead of timm's learned scale of each branch.
        self.ls1 = Divide(residual_divisor)
        self.ls2 = Divide(residual_divisor)
