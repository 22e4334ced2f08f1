"""transformers' ``Dinov2ForImageClassification``."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.dinov2.modeling_dinov2 import (
    Dinov2Attention,
    Dinov2DropPath,
    Dinov2ForImageClassification,
    Dinov2Layer,
)

from dynamicvit.backbones.hf_common import CROPPED, HFAdapter
from dynamicvit.layers.pooling import masked_mean
from dynamicvit.layers.tokens import Heads, Tokens


class HFDinov2Adapter(HFAdapter):
    """Blocks with layer scale; the classifier reads class token and mean of the patches."""

    family = "transformers DINOv2 for image classification"
    model_classes = (Dinov2ForImageClassification,)
    block_classes = (Dinov2Layer,)
    attention_classes = (Dinov2Attention,)

    def encoder(self, backbone: nn.Module) -> Any:
        return backbone.dinov2

    def blocks(self, backbone: nn.Module) -> nn.ModuleList:
        return cast(nn.ModuleList, backbone.dinov2.encoder.layer)

    def attention(self, block: nn.Module) -> Any:
        return block.attention

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        return 1

    def num_features(self, backbone: nn.Module) -> int:
        return 2 * self.width(backbone)

    def check_image_size(
        self, backbone: nn.Module, height: int, width: int, interpolate: bool
    ) -> None:
        """It interpolates unasked."""

    def dense(self, backbone: nn.Module, images: Tensor) -> Tensor:
        return backbone(images).logits

    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        return Tokens(self.encoder(backbone).embeddings(images), 1), None

    def attention_inputs(
        self,
        block: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        attn: Any = block.attention
        return self.heads(attn, block.norm1(tokens.x), attn.attention_dropout, queries)

    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        mixed = block.attention.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + block.drop_path(block.layer_scale1(mixed))
        return x + block.drop_path(block.layer_scale2(block.mlp(block.norm2(x))))

    def finish(self, backbone: nn.Module, x: Tensor) -> Tensor:
        return backbone.dinov2.layernorm(x)

    def pool(self, tokens: Tokens) -> Tensor:
        return torch.cat([tokens.x[:, 0], masked_mean(tokens.patches, tokens.weight)], dim=1)

    def set_drop_path(self, backbone: nn.Module, rates: list[float]) -> None:
        for block, rate in zip(self.blocks(backbone), rates, strict=True):
            block.drop_path = Dinov2DropPath(rate) if rate else nn.Identity()

    def processing(self, backbone: nn.Module) -> dict[str, Any]:
        return CROPPED
