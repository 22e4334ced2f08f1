"""timm's ConvNeXt (v1). Its blocks mix by a depth-wise convolution."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import Mlp
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from dynamicvit.backbones.hierarchical import THIRD, Hierarchical
from dynamicvit.errors import InputError
from dynamicvit.layers.maps import CheapPath, Map

#: Layer scale of the cheap path, as of a fresh ConvNeXt's blocks.
_SCALE = 1e-6


class ConvNeXtBackbone(Hierarchical):
    """A block: depth-wise convolution over the map, then norm and MLP, scaled, and the residual."""

    family = "timm ConvNeXt"
    model_classes = (ConvNeXt,)
    block_classes = (ConvNeXtBlock,)
    channels_last = False
    eps = 1e-6
    drop_paths = ("drop_path",)

    def why_not(self) -> str | None:
        for block in self.blocks:
            if type(getattr(block, "mlp", None)) is not Mlp:
                return (
                    f"its {type(block.mlp).__name__}: a global response norm (ConvNeXt-V2) looks "
                    "at all positions inside the MLP, so none can leave it"
                )
            if not isinstance(block.shortcut, nn.Identity):
                return "blocks whose shortcut is no identity"
        return super().why_not()

    @property
    def levels(self) -> Any:
        return self.module.stages

    @property
    def stem(self) -> nn.Module:
        return self.module.stem

    @property
    def width(self) -> int:
        return cast(Any, self.blocks[0]).conv_dw.weight.shape[0]

    def mixed(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, block.conv_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def slow(self, block: Any, x: Tensor) -> Tensor:
        if block.use_conv_mlp:  # its layers take (B, C, rows, columns)
            rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
            out = block.mlp(block.norm(rows)).permute(0, 2, 3, 1).reshape(x.shape)
        else:
            out = block.mlp(block.norm(x))
        return out if block.gamma is None else out * block.gamma

    def cheap_path(self) -> CheapPath:
        return CheapPath(self.width, self.eps, None if self.blocks[0].gamma is None else _SCALE)

    def normed(self, x: Tensor) -> Map:
        x, norm = self.module.norm_pre(x), getattr(self.module.head, "norm", None)
        if norm is None:
            return self.tokens(x)
        whole = self.tokens(norm(x))  # which the losses look at; the head's norm follows its pool
        return Map(whole.x, 0, whole.grid, unnormed=x)

    # ---------------------------------------------------------------- sizes

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.pretrained_cfg.get("input_size", (3, 224, 224))[1:])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        smallest = self.module.feature_info[THIRD + 1]["reduction"]
        if min(height, width) < smallest:
            raise InputError(
                f"images of {height}x{width}, but this backbone takes {smallest} px a side or more"
            )
        rows, columns = self.patch_size
        return height // rows, width // columns

    def set_image_size(self, height: int, width: int) -> None:
        self.grid(height, width)
        size = (self.in_chans, height, width)
        self.module.pretrained_cfg = {**self.pretrained_cfg, "input_size": size}
