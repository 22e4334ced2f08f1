"""timm's ``Eva``: EVA-02 and its kin, with rotary positions gathered for each image."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from dynamicvit.backbones.timm_common import TimmAdapter
from dynamicvit.layers.projections import partial_heads, separate
from dynamicvit.layers.tokens import Heads, Tokens


class EvaAdapter(TimmAdapter):
    """Pre-norm blocks with rotary positions, split or fused query, key and value."""

    family = "timm Eva (EVA, EVA-02)"
    model_classes = (Eva,)
    block_classes = (EvaBlock,)
    attention_classes = (EvaAttention,)

    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        x, rope = backbone._pos_embed(backbone.patch_embed(images))
        return Tokens(backbone.norm_pre(x), backbone.num_prefix_tokens), rope

    def heads(
        self,
        attn: nn.Module,
        x: Tensor,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        query, key, value = split_heads(attn, x, queries)
        query, key = attn.q_norm(query), attn.k_norm(key)
        rope = rotary(position, depth, tokens.index)
        if rope is not None:
            if queries is None:  # else they are prefix tokens'
                query = rotate(attn, query, rope)
            query = query.type_as(value)
            key = rotate(attn, key, rope).type_as(value)
        return Heads(query, key, value)

    def layer_scale(self, block: nn.Module, branch: int, x: Tensor) -> Tensor:
        return gamma_scaled(block, branch, x)

    def pools_prefix(self, backbone: nn.Module) -> bool:
        return backbone.global_pool == "map"


def split_heads(
    attn: nn.Module, x: Tensor, queries: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value ``(B, H, T, D)`` of an attention whose key has no bias.

    Args:
        attn: the attention.
        x: ``(B, T, C)``.
        queries: how many of the first tokens ask; ``None`` for all.
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
        return partial_heads(x, attn.qkv.weight, bias, attn.num_heads, queries)
    query, key, value = separate(F.linear(x, attn.qkv.weight, bias), attn.num_heads)
    return query, key, value


def rotary(rope: Tensor | None, depth: int, index: Tensor | None) -> Tensor | None:
    """The rotary table of the held patches.

    Args:
        rope: ``(N, D)`` for all blocks, or ``(depth, H, N, D)`` with one table for each block.
        depth: which block asks.
        index: ``(B, M)`` original patch of each held token, or ``None`` when all are held.

    Returns:
        The block's table as it is, or ``(B, 1 or H, M, D)`` gathered for each image.
    """
    if rope is None:
        return None
    if rope.ndim == 4:
        rope = rope[depth]
    if index is None:
        return rope
    if rope.ndim == 2:
        return rope[index].unsqueeze(1)
    return rope[:, index].transpose(0, 1)


def rotate(attn: nn.Module, x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the patch tokens of ``(B, H, P + M, D)``; prefix tokens have no place to rotate to."""
    num_prefix = x.shape[2] - rope.shape[-2]
    prefix, patches = x[:, :, :num_prefix], x[:, :, num_prefix:]
    half = getattr(attn, "rotate_half", False)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=half)], dim=2)


def gamma_scaled(block: nn.Module, branch: int, x: Tensor) -> Tensor:
    """Layer scale by the block's ``gamma_1`` or ``gamma_2``, where it has them."""
    gamma = block.gamma_1 if branch == 1 else block.gamma_2
    return x if gamma is None else cast(Tensor, gamma) * x
