"""Small ConvNeXts and Swins, whose maps stay whole, with weights at which errors can't hide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dynamicvit import DynamicViT, sparsify
from families import NUM_CLASSES, built_once, randomize

CONVNEXT = {"depths": (1, 1, 5, 1), "dims": (8, 16, 32, 64)}
SWIN = {"depths": (1, 1, 5, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8)}


@dataclass(frozen=True)
class MapFamily:
    """One row: a name in timm, what is changed of it, and the image size.

    Attributes:
        name: how tests call it.
        model: the name in timm.
        kwargs: arguments over timm's own for this model.
        size: height and width of the images.
        grid: of the third stage.
    """

    name: str
    model: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (64, 96)
    grid: tuple[int, int] = (4, 6)

    @built_once
    def backbone(self, depth: int = 5, seed: int = 0, **kwargs: Any) -> nn.Module:
        """The dense network in eval mode; ``depth`` is that of the third stage."""
        small = {**(SWIN if "swin" in self.model else CONVNEXT), "num_classes": NUM_CLASSES}
        if "swin" in self.model:
            small |= {"img_size": self.size, "drop_path_rate": 0.0}
        arguments = {**small, "depths": (1, 1, depth, 1), **self.kwargs, **kwargs}
        return randomize(timm.create_model(self.model, **arguments), seed).eval()

    @built_once
    def sparse(
        self,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        depth: int = 5,
        seed: int = 0,
        **kwargs: Any,
    ) -> DynamicViT:
        """With random prediction modules and cheap paths, in eval mode."""
        model = sparsify(self.backbone(depth, seed, **kwargs), keep_ratio, stages)
        randomize(model.predictors, seed + 1)
        for predictor in model.predictors:
            predictor.mlp[-1].weight.data *= 0.3
        return model.eval()

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def images(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Noise of this family's image size."""
        return torch.randn(batch, 3, *self.size, generator=torch.Generator().manual_seed(seed))

    def decisions(self, batch: int = 2, stages: int = 3, seed: int = 0) -> list[Tensor]:
        """Random ones for each stage, which know nothing of each other."""
        random = torch.Generator().manual_seed(seed)
        return [
            (torch.rand(batch, self.num_patches, generator=random) < 0.6).float()
            for _ in range(stages)
        ]


MAPS = (
    MapFamily("convnext", "convnext_tiny"),
    MapFamily("convnext_convs", "convnext_atto"),
    MapFamily("convnext_rms", "convnext_zepto_rms_ols"),
    MapFamily("convnext_norm_first", "convnext_tiny_hnf"),
    MapFamily("convnext_unscaled", "convnext_tiny", {"ls_init_value": None}),
    MapFamily("convnext_odd", "convnext_tiny", size=(80, 115), grid=(5, 7)),
    MapFamily("convnext_hidden", "convnext_large_mlp"),
    MapFamily("swin", "swin_tiny_patch4_window7_224", {"window_size": 2}),
    MapFamily("swin_padded", "swin_tiny_patch4_window7_224", {"window_size": 3}),
    MapFamily(  # windows don't divide the map, and the map is odd
        "swin_odd", "swin_tiny_patch4_window7_224", {"window_size": 3}, (76, 116), (5, 8)
    ),
    MapFamily("swin_large_window", "swin_tiny_patch4_window7_224"),
    MapFamily(
        "swin_any_size",
        "swin_tiny_patch4_window7_224",
        {"strict_img_size": False},
        (96, 64),
        (6, 4),
    ),
    MapFamily("swinv2", "swinv2_tiny_window8_256", {"window_size": 4}),
    MapFamily("swin_s3", "swin_s3_tiny_224", {"window_size": (2, 2, 3, 2)}),
)

BY_NAME = {family.name: family for family in MAPS}

each_map = pytest.mark.parametrize("family", MAPS, ids=lambda family: family.name)

few_maps = pytest.mark.parametrize(
    "family", [BY_NAME["convnext"], BY_NAME["swin"]], ids=lambda family: family.name
)
