"""transformers' ``ViTForImageClassification`` and ``DeiTForImageClassification``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.deit.modeling_deit import (
    DeiTAttention,
    DeiTForImageClassification,
    DeiTLayer,
)
from transformers.models.vit.modeling_vit import (
    ViTAttention,
    ViTForImageClassification,
    ViTLayer,
)

from dynamicvit.backbones.hf_base import CROPPED, SQUASHED, HFBackbone
from dynamicvit.layers.tokens import Tokens


class HFViTBackbone(HFBackbone):
    """Pre-norm blocks and a class token."""

    family = "transformers ViT for image classification"
    model_classes = (ViTForImageClassification,)
    block_classes = (ViTLayer,)
    attention_classes = (ViTAttention,)
    processing: ClassVar[dict[str, Any]] = {**SQUASHED, "interpolation": "bilinear"}

    @property
    def num_prefix(self) -> int:
        return 1

    @property
    def reads(self) -> int:
        return 1

    @property
    def encoder(self) -> Any:
        return self.module.vit

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layers

    def first_norm(self, block: Any) -> nn.Module:
        return block.layernorm_before

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        mixed = block.attention.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + block.dropout(mixed)
        return x + block.dropout(block.mlp(block.layernorm_after(x)))

    def norm(self, x: Tensor) -> Tensor:
        return self.encoder.layernorm(x)

    def pool(self, tokens: Tokens) -> Tensor:
        return tokens.x[:, 0]


class HFDeiTBackbone(HFViTBackbone):
    """The same with a distillation token, which nothing reads."""

    family = "transformers DeiT for image classification"
    model_classes = (DeiTForImageClassification,)
    block_classes = (DeiTLayer,)
    attention_classes = (DeiTAttention,)
    processing: ClassVar[dict[str, Any]] = {**CROPPED, "crop_mode": "squash"}

    @property
    def num_prefix(self) -> int:
        return 2

    @property
    def encoder(self) -> Any:
        return self.module.deit
