"""transformers' ``VJEPA2ForVideoClassification`` (Assran et al., V-JEPA 2, 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.vjepa2.modeling_vjepa2 import (
    VJEPA2DropPath,
    VJEPA2ForVideoClassification,
    VJEPA2Layer,
    VJEPA2RopeAttention,
)

from dynamicvit.backbones.eva import rotary, rotate
from dynamicvit.backbones.hf_base import CROPPED
from dynamicvit.backbones.hf_video import HFVideoBackbone
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import as_module, proportional, softmax_attention
from dynamicvit.layers.masked_attention import masked_attention
from dynamicvit.layers.tokens import Grid, Heads, Tokens


class HFVJEPA2Backbone(HFVideoBackbone):
    """Rotary positions along three axes, so clips of any number of frames; an attentive pooler.

    The pooler belongs to the head: its layers attend to the kept tubelets alone, in both paths. The
    predictor of pretraining is never run.
    """

    family = "transformers V-JEPA 2 for video classification"
    model_classes = (VJEPA2ForVideoClassification,)
    block_classes = (VJEPA2Layer,)
    attention_classes = (VJEPA2RopeAttention,)
    processing: ClassVar[dict[str, Any]] = {**CROPPED, "interpolation": "bilinear"}

    # ---------------------------------------------------------------- its parts

    @property
    def num_prefix(self) -> int:
        return 0

    @property
    def encoder(self) -> Any:
        return self.module.vjepa2.encoder

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.layer

    @property
    def frames(self) -> int:
        return self.encoder.config.frames_per_clip

    @property
    def image_size(self) -> tuple[int, int]:
        return (self.encoder.config.crop_size,) * 2

    def head_dim(self, attn: Any) -> int:
        return attn.attention_head_size

    def projections(self, attn: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
        return attn.query, attn.key, attn.value

    def attention_dropout(self, block: Any) -> float:
        return block.attention.dropout_prob if block.attention.training else 0.0

    def first_norm(self, block: Any) -> nn.Module:
        return block.norm1

    def grid(self, height: int, width: int, frames: int | None = None) -> Grid:
        frames = self.frames if frames is None else frames
        if frames < self.tubelet:
            raise InputError(f"clips of {frames} frames, but a tubelet has {self.tubelet}")
        _, *space = super().grid(height, width)  # transformers counts rows as in its own size
        return frames // self.tubelet, *space

    # ---------------------------------------------------------------- the path of the tokens

    def embed(self, images: Tensor) -> Tokens:
        grid = self._grid_of(images)
        x = self.embedded(images)
        return Tokens(x, 0, grid, position=self._rotary_table(grid, x))

    def _rotary_table(self, grid: Grid, x: Tensor) -> Tensor:
        """``(N, 2 D)``, sines and cosines as timm has them; a head's last channels don't turn."""
        attn: Any = self.attention(self.blocks[0])
        half, dtype = attn.d_dim // 2, torch.promote_types(x.dtype, torch.float32)
        steps = torch.arange(half, dtype=dtype, device=x.device) / max(half, 1)
        axes = (torch.arange(side, dtype=dtype, device=x.device) for side in grid)
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
        angles = places[..., None] * 10000**-steps  # (N, 3, half)
        angles = angles.repeat(1, 1, 2).flatten(1)  # the released code repeats, and turns pairs
        still = angles.new_zeros(angles.shape[0], self.head_dim(attn) - angles.shape[1])
        angles = torch.cat([angles, still], dim=1)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    @property
    def has_plain_products(self) -> bool:
        return False

    def placed(
        self, i: int, qkv: tuple[Tensor, Tensor, Tensor], tokens: Tokens, queries: int | None = None
    ) -> Heads:
        query, key, value = qkv
        table = rotary(tokens.position, i, tokens.index)
        if table is None:
            return Heads(*qkv)
        query, key = (rotate(each, table, False).type_as(value) for each in (query, key))
        return Heads(query, key, value)

    def call_arguments(self, i: int, tokens: Tokens) -> None:
        """Never: its block gives a tuple, and takes the held tokens for the first of the grid."""

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.drop_path(block.attention.proj(attended.transpose(1, 2).flatten(2)))
        return x + block.drop_path(block.mlp(block.norm2(x)))

    def norm(self, x: Tensor) -> Tensor:
        return self.encoder.layernorm(x)

    def pool(self, tokens: Tokens) -> Tensor:
        """The attentive pooler over the kept tubelets; zero for a clip that keeps none."""
        pooler: Any = self.module.pooler
        if not tokens.num_patches:
            return tokens.x.new_zeros(tokens.x.shape[0], self.width)
        x, decision, size = tokens.patches, tokens.decision, tokens.size
        if decision is None and size is None:
            return pooler(x)

        def attend(attn: Any, queries: Tensor, x: Tensor, keep_self: bool) -> Tensor:
            query, key, value = (
                projected.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
                for projected in (attn.q_proj(queries), attn.k_proj(x), attn.v_proj(x))
            )
            bias = proportional(None, size, query.dtype)
            dropout = attn.dropout if attn.training else 0.0
            if decision is None:
                mixed = softmax_attention(query, key, value, bias=bias, dropout_p=dropout)
            else:
                mixed = masked_attention(
                    query, key, value, decision, bias=bias, dropout_p=dropout, keep_self=keep_self
                )
            return mixed.transpose(1, 2).flatten(2)

        def by_parts(x: Tensor) -> Tensor:
            for layer in pooler.self_attention_layers:
                normed, attn = layer.layer_norm1(x), layer.self_attn
                x = x + attn.out_proj(attend(attn, normed, normed, keep_self=True))
                x = x + layer.mlp(layer.layer_norm2(x))
            layer, queries = pooler.cross_attention_layer, pooler.query_tokens
            queries = queries.expand(x.shape[0], -1, -1)
            mixed = attend(layer.cross_attn, queries, layer.layer_norm1(x), keep_self=False)
            queries = queries + mixed
            return (queries + layer.mlp(layer.layer_norm2(queries)))[:, 0]

        pooled = as_module(pooler, by_parts, x)
        if decision is None:
            return pooled
        return torch.where(decision.sum(dim=1, keepdim=True) > 0.5, pooled, 0.0)

    # ---------------------------------------------------------------- training

    def set_drop_path(self, rates: list[float]) -> None:
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path = VJEPA2DropPath(rate) if rate else nn.Identity()
