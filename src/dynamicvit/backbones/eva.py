"""timm's ``Eva``: EVA, EVA-02 and DINOv3, with rotary positions gathered for each image."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor

from dynamicvit.backbones.timm_vit import TimmBackbone
from dynamicvit.layers.attention import partial_qkv, separate
from dynamicvit.layers.tokens import Heads, Tokens


class EvaBackbone(TimmBackbone):
    """Pre-norm blocks with rotary positions, split or fused query, key and value."""

    family = "timm Eva (EVA, EVA-02, DINOv3)"
    model_classes = (Eva,)
    block_classes = (EvaBlock,)
    attention_classes = (EvaAttention,)

    def embed(self, images: Tensor) -> Tokens:
        x, rope = self.module._pos_embed(self.module.patch_embed(images))
        return self.tokens(self.module.norm_pre(x), images, rope)

    def projected(self, attn: Any, x: Tensor, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        return split_qkv(attn, x, queries)

    def placed(
        self, i: int, qkv: tuple[Tensor, Tensor, Tensor], tokens: Tokens, queries: int | None = None
    ) -> Heads:
        query, key, value = qkv
        rope = rotary(tokens.position, i, tokens.index)
        if rope is not None:
            half = getattr(self.blocks[i].attn, "rotate_half", False)
            if queries is None:  # else they are prefix tokens'
                query = rotate(query, rope, half)
            query = query.type_as(value)
            key = rotate(key, rope, half).type_as(value)
        return Heads(query, key, value)

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        # Its attention counts the network's own prefix tokens only.
        rope = rotary(tokens.position, i, tokens.index)
        bias = self.size_bias(tokens)
        return None if tokens.added else (tokens.x, rope, *(() if bias is None else (bias,)))

    def layer_scale(self, block: Any, branch: int, x: Tensor) -> Tensor:
        return gamma_scaled(block, branch, x)

    @property
    def pools_prefix(self) -> bool:
        return self.module.global_pool == "map"


def split_qkv(attn: Any, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value ``(B, H, T, D)`` of an attention whose key has no bias.

    Args:
        attn: the attention.
        x: ``(B, T, C)``.
        queries: how many of the first tokens attend; ``None`` for all.
    """
    if attn.qkv is None:
        parts = (attn.q_proj(x[:, :queries]), attn.k_proj(x), attn.v_proj(x))
        query, key, value = (
            part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts
        )
        return query, key, value
    bias = None
    if attn.q_bias is not None:
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    if queries is not None:
        return partial_qkv(x, attn.qkv.weight, bias, attn.num_heads, queries)
    query, key, value = separate(F.linear(x, attn.qkv.weight, bias), attn.num_heads)
    return query, key, value


def rotary(rope: Tensor | None, i: int, index: Tensor | None) -> Tensor | None:
    """The rotary table of the held patches.

    Args:
        rope: ``(N, D)`` for all blocks, or ``(depth, H, N, D)`` with one table for each block.
        i: index of the block.
        index: ``(B, M)`` index of each held patch token in the grid, or ``None`` for all.

    Returns:
        The block's table as it is, or ``(B, 1 or H, M, D)`` gathered for each image.
    """
    if rope is None:
        return None
    if rope.ndim == 4:
        rope = rope[i]
    if index is None:
        return rope
    if rope.ndim == 2:
        return rope[index].unsqueeze(1)
    return rope[:, index].transpose(0, 1)


def rotate(x: Tensor, rope: Tensor, half: bool) -> Tensor:
    """Rotate the patch tokens of ``(B, H, P + M, D)``; prefix tokens have no place to rotate to."""
    num_prefix = x.shape[2] - rope.shape[-2]
    prefix, patches = x[:, :, :num_prefix], x[:, :, num_prefix:]
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=half)], dim=2)


def gamma_scaled(block: Any, branch: int, x: Tensor) -> Tensor:
    """Layer scale by the block's ``gamma_1`` or ``gamma_2``, where it has them."""
    gamma = block.gamma_1 if branch == 1 else block.gamma_2
    return x if gamma is None else gamma * x
