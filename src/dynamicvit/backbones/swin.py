"""timm's Swin Transformer, v1 and v2. Their blocks mix by attention in (shifted) windows."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from torch import Tensor, nn

from dynamicvit.backbones.hierarchical import Hierarchical
from dynamicvit.errors import InputError
from dynamicvit.layers.maps import CheapPath, Map


class SwinBackbone(Hierarchical):
    """A block: attention in windows over the map with its residual, then norm, MLP and residual."""

    family = "timm Swin Transformer"
    model_classes = (SwinTransformer,)
    block_classes = (SwinTransformerBlock,)
    channels_last = True
    eps = 1e-5
    drop_paths = ("drop_path1", "drop_path2")

    def why_not(self) -> str | None:
        if type(self.module.patch_embed) is not PatchEmbed:
            return f"its patch embedding class {type(self.module.patch_embed).__name__}"
        return super().why_not()

    @property
    def levels(self) -> Any:
        return self.module.layers

    @property
    def stem(self) -> nn.Module:
        return self.module.patch_embed

    @property
    def width(self) -> int:
        return cast(Any, self.blocks[0]).norm2.weight.shape[0]

    def mixed(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + block.drop_path1(block._attn(block.norm1(x)))
        return x, x

    def slow(self, block: Any, x: Tensor) -> Tensor:
        return block.mlp(block.norm2(x))

    def cheap_path(self) -> CheapPath:
        return CheapPath(self.width, self.eps)

    def normed(self, x: Tensor) -> Map:
        return self.tokens(self.module.norm(x))

    # ---------------------------------------------------------------- sizes

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.module.patch_embed.img_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        embed: Any = self.module.patch_embed
        if embed.strict_img_size and (height, width) != tuple(embed.img_size):
            raise InputError(
                f"images of {height}x{width}, but this backbone takes {embed.img_size[0]}x"
                f"{embed.img_size[1]}: its windows are made for that (create it with another "
                "img_size, or with strict_img_size=False)"
            )
        rows, columns = self._whole_patches(height, width)
        # Two times two positions become one, twice; an odd one is padded.
        return -(-height // (4 * rows)), -(-width // (4 * columns))

    def set_image_size(self, height: int, width: int) -> None:
        if (height, width) != self.image_size:
            self._whole_patches(height, width)
            self.module.set_input_size(img_size=(height, width))
        self.grid(height, width)

    def _whole_patches(self, height: int, width: int) -> tuple[int, int]:
        """Sides of a patch, if they divide those of the images."""
        rows, columns = self.module.patch_embed.patch_size
        if min(height, width) < 1 or height % rows or width % columns:
            raise InputError(
                f"images of {height}x{width}, but this backbone takes multiples of its "
                f"{rows}x{columns} patches"
            )
        return rows, columns


class SwinV2Backbone(SwinBackbone):
    """The norms of v2 come after attention and MLP."""

    family = "timm Swin Transformer V2"
    model_classes = (SwinTransformerV2,)
    block_classes = (SwinTransformerV2Block,)

    def mixed(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + block.drop_path1(block.norm1(block._attn(x)))
        return x, x

    def slow(self, block: Any, x: Tensor) -> Tensor:
        return block.norm2(block.mlp(x))
