"""transformers' ``SiglipForImageClassification``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipEncoderLayer,
    SiglipForImageClassification,
)

from dynamicvit.backbones.hf_base import SQUASHED, HFBackbone
from dynamicvit.layers.pooling import masked_mean
from dynamicvit.layers.tokens import Tokens


class HFSiglipBackbone(HFBackbone):
    """No prefix token; the classifier reads the mean of the patches.

    The pooling head of SigLIP's vision model is not run: this classifier has no use for it.
    """

    family = "transformers SigLIP for image classification"
    model_classes = (SiglipForImageClassification,)
    block_classes = (SiglipEncoderLayer,)
    attention_classes = (SiglipAttention,)
    processing: ClassVar[dict[str, Any]] = {**SQUASHED, "interpolation": "bicubic"}

    @property
    def num_prefix(self) -> int:
        return 0

    @property
    def encoder(self) -> Any:
        return self.module.vision_model

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    def attention(self, block: Any) -> Any:
        return block.self_attn

    def attention_scale(self, attn: Any) -> float:
        return attn.scale

    def attention_dropout(self, block: Any) -> float:
        return block.self_attn.dropout if block.self_attn.training else 0.0

    def first_norm(self, block: Any) -> nn.Module:
        return block.layer_norm1

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        arguments = super().call_arguments(i, tokens)
        return arguments and (*arguments, None)  # no attention mask

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.self_attn.out_proj(attended.transpose(1, 2).flatten(2))
        return x + block.mlp(block.layer_norm2(x))

    def norm(self, x: Tensor) -> Tensor:
        return self.encoder.post_layernorm(x)

    def pool(self, tokens: Tokens) -> Tensor:
        return masked_mean(tokens.patches, tokens.weight)
