"""transformers' ``SiglipForImageClassification``."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import (
    SiglipAttention,
    SiglipEncoderLayer,
    SiglipForImageClassification,
)

from dynamicvit.backbones.hf_common import SQUASHED, HFAdapter
from dynamicvit.layers.pooling import masked_mean
from dynamicvit.layers.tokens import Heads, Tokens


class HFSiglipAdapter(HFAdapter):
    """No prefix token; the classifier reads the mean of the patches.

    The pooling head of SigLIP's vision model is not run: this classifier has no use for it.
    """

    family = "transformers SigLIP for image classification"
    model_classes = (SiglipForImageClassification,)
    block_classes = (SiglipEncoderLayer,)
    attention_classes = (SiglipAttention,)

    def encoder(self, backbone: nn.Module) -> Any:
        return backbone.vision_model

    def blocks(self, backbone: nn.Module) -> nn.ModuleList:
        return cast(nn.ModuleList, backbone.vision_model.encoder.layers)

    def attention(self, block: nn.Module) -> Any:
        return block.self_attn

    def attention_scale(self, attn: Any) -> float:
        return attn.scale

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        return 0

    def attention_inputs(
        self,
        block: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        attn: Any = block.self_attn
        return self.heads(attn, block.layer_norm1(tokens.x), attn.dropout, queries)

    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.self_attn.out_proj(attended.transpose(1, 2).flatten(2))
        return x + block.mlp(block.layer_norm2(x))

    def finish(self, backbone: nn.Module, x: Tensor) -> Tensor:
        return backbone.vision_model.post_layernorm(x)

    def pool(self, tokens: Tokens) -> Tensor:
        return masked_mean(tokens.patches, tokens.weight)

    def processing(self, backbone: nn.Module) -> dict[str, Any]:
        return {**SQUASHED, "interpolation": "bicubic"}
