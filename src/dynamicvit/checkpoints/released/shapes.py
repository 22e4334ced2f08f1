"""What the shapes of a released state dict say about its network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dynamicvit.checkpoints.released.layouts import Layout, count
from dynamicvit.errors import InputError

#: LV-ViT's stem halves the image before patches are taken from it.
LVVIT_STEM_STRIDE = 2


@dataclass(frozen=True)
class Shapes:
    """What the shapes of a released state dict say about its network.

    Attributes:
        width: C.
        depth: number of blocks.
        hidden: width inside each MLP.
        grid: rows, and columns, of patches.
        patch: height and width of a patch in pixels.
        channels: of an image.
        classes: number of them.
        num_stages: prediction modules.
        qkv_bias: whether queries, keys and values have one.
        stem_width: channels of LV-ViT's stem; ``None`` for DeiT, which has none.
    """

    width: int
    depth: int
    hidden: int
    grid: int
    patch: tuple[int, int]
    channels: int
    classes: int
    num_stages: int
    qkv_bias: bool
    stem_width: int | None

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layout: Layout, source: str) -> Shapes:
        """Read them from tensors that have the layout's names.

        Raises:
            InputError: if a tensor that they are read from has other dimensions or is empty.
        """
        ranks = {
            "patch_embed.proj.weight": 4,
            "patch_embed.conv1.weight": 4,
            "pos_embed": 3,
            "blocks.0.mlp.fc1.weight": 2,
            "head.weight": 2,
        }
        for name, rank in ranks.items():
            if name in tensors and tensors[name].ndim != rank:
                raise InputError(
                    f"{source}: {name} has shape {tuple(tensors[name].shape)}, where a "
                    f"{layout.name}'s has {rank} dimensions"
                )
            if name in tensors and not tensors[name].numel():
                empty = "0 classes" if name == "head.weight" else "nothing in it"
                raise InputError(
                    f"{source}: {name} has shape {tuple(tensors[name].shape)}: {empty}"
                )
        width, embedded, *patch = tensors["patch_embed.proj.weight"].shape
        stem_width, channels = None, embedded
        if layout.name == "LV-ViT":
            stem_width, channels, *_ = tensors["patch_embed.conv1.weight"].shape
            patch = [LVVIT_STEM_STRIDE * side for side in patch]
        num_patches = tensors["pos_embed"].shape[1] - 1
        grid = math.isqrt(max(num_patches, 0))
        if grid == 0 or grid * grid != num_patches:
            raise InputError(
                f"{source}: pos_embed holds {num_patches} patches, which is not a square grid"
            )
        return cls(
            width=width,
            depth=count(tensors, "blocks"),
            hidden=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            grid=grid,
            patch=(patch[0], patch[1]),
            channels=channels,
            classes=tensors["head.weight"].shape[0],
            num_stages=count(tensors, "score_predictor"),
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
            stem_width=stem_width,
        )

    def backbone_args(self) -> dict[str, Any]:
        """timm's arguments, but for what shapes can't tell."""
        stem = {} if self.stem_width is None else {"stem_width": self.stem_width}
        return stem | {
            "img_size": (self.grid * self.patch[0], self.grid * self.patch[1]),
            "patch_size": self.patch[0] if self.patch[0] == self.patch[1] else self.patch,
            "in_chans": self.channels,
            "num_classes": self.classes,
            "embed_dim": self.width,
            "depth": self.depth,
            "mlp_ratio": self.hidden / self.width,
            "qkv_bias": self.qkv_bias,
        }
