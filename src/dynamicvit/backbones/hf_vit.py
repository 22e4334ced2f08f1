"""transformers' ``ViTForImageClassification`` and ``DeiTForImageClassification``."""

from __future__ import annotations

from typing import Any, cast

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

from dynamicvit.backbones.hf_common import CROPPED, SQUASHED, HFAdapter
from dynamicvit.layers.tokens import Heads, Tokens


class HFViTAdapter(HFAdapter):
    """Pre-norm blocks, a class token, and in DeiT a distillation token that nothing reads."""

    family = "transformers ViT and DeiT for image classification"
    model_classes = (ViTForImageClassification, DeiTForImageClassification)
    block_classes = (ViTLayer, DeiTLayer)
    attention_classes = (ViTAttention, DeiTAttention)

    def encoder(self, backbone: nn.Module) -> Any:
        return backbone.vit if isinstance(backbone, ViTForImageClassification) else backbone.deit

    def blocks(self, backbone: nn.Module) -> nn.ModuleList:
        return cast(nn.ModuleList, self.encoder(backbone).layers)

    def attention(self, block: nn.Module) -> Any:
        return block.attention

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        return 1 if isinstance(backbone, ViTForImageClassification) else 2

    def attention_inputs(
        self,
        block: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        attn: Any = block.attention
        return self.heads(attn, block.layernorm_before(tokens.x), attn.attention_dropout, queries)

    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        mixed = block.attention.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + block.dropout(mixed)
        return x + block.dropout(block.mlp(block.layernorm_after(x)))

    def finish(self, backbone: nn.Module, x: Tensor) -> Tensor:
        return self.encoder(backbone).layernorm(x)

    def reads(self, backbone: nn.Module) -> int:
        return 1

    def pool(self, tokens: Tokens) -> Tensor:
        return tokens.x[:, 0]

    def processing(self, backbone: nn.Module) -> dict[str, Any]:
        if isinstance(backbone, ViTForImageClassification):
            return {**SQUASHED, "interpolation": "bilinear"}
        return {**CROPPED, "crop_mode": "squash"}
