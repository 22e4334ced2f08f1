"""transformers' ``Dinov2ForImageClassification``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.dinov2.modeling_dinov2 import (
    Dinov2Attention,
    Dinov2DropPath,
    Dinov2ForImageClassification,
    Dinov2Layer,
)

from dynamicvit.backbones.hf_base import CROPPED, HFBackbone
from dynamicvit.layers.pooling import masked_mean
from dynamicvit.layers.tokens import Tokens


class HFDinov2Backbone(HFBackbone):
    """Blocks with layer scale; the classifier reads class token and mean of the patches."""

    family = "transformers DINOv2 for image classification"
    model_classes = (Dinov2ForImageClassification,)
    block_classes = (Dinov2Layer,)
    attention_classes = (Dinov2Attention,)
    processing = CROPPED

    @property
    def num_prefix(self) -> int:
        return 1

    @property
    def encoder(self) -> Any:
        return self.module.dinov2

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.encoder.layer

    @property
    def num_features(self) -> int:
        return 2 * self.width

    def check_image_size(self, height: int, width: int, interpolate: bool) -> None:
        """It interpolates unasked."""

    def _interpolated(self, images: Tensor) -> dict[str, bool]:
        return {}

    def first_norm(self, block: Any) -> nn.Module:
        return block.norm1

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        mixed = block.attention.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + block.drop_path(block.layer_scale1(mixed))
        return x + block.drop_path(block.layer_scale2(block.mlp(block.norm2(x))))

    def norm(self, x: Tensor) -> Tensor:
        return self.encoder.layernorm(x)

    def pool(self, tokens: Tokens) -> Tensor:
        return torch.cat([tokens.x[:, 0], masked_mean(tokens.patches, tokens.weight)], dim=1)

    def set_drop_path(self, rates: list[float]) -> None:
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path = Dinov2DropPath(rate) if rate else nn.Identity()
