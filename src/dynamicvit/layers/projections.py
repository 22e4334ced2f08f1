"""Query, key and value, where only some tokens ask: those have a query, all a key and a value."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.layers.plain import is_plain


def fused_heads(
    qkv: nn.Module, x: Tensor, num_heads: int, queries: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one layer that gives all three.

    Args:
        qkv: from ``(B, T, C)`` to ``(B, T, 3 H D)``.
        x: ``(B, T, C)``.
        num_heads: H.
        queries: how many of the first tokens ask; ``None`` for all.

    Returns:
        ``(B, H, T or queries, D)``, ``(B, H, T, D)`` and ``(B, H, T, D)``.
    """
    if queries is None:
        query, key, value = separate(qkv(x), num_heads)
        return query, key, value
    if not is_plain(qkv):
        query, key, value = separate(qkv(x), num_heads)
        return query[:, :, :queries], key, value
    return partial_heads(x, qkv.weight, qkv.bias, num_heads, queries)


def partial_heads(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the layer's weights, without the queries that nobody asks for.

    Args:
        x: ``(B, T, C)``.
        weight: ``(3 H D, C)``.
        bias: ``(3 H D)`` or ``None``.
        num_heads: H.
        queries: how many of the first tokens ask.
    """
    width = weight.shape[0] // 3
    parts = (None, None) if bias is None else (bias[:width], bias[width:])
    asked = F.linear(x[:, :queries], weight[:width], parts[0])
    key, value = separate(F.linear(x, weight[width:], parts[1]), num_heads, 2)
    return asked.unflatten(-1, (num_heads, -1)).transpose(1, 2), key, value


def separate(x: Tensor, num_heads: int, count: int = 3) -> tuple[Tensor, ...]:
    """``count`` tensors ``(B, H, T, D)`` from ``(B, T, count H D)``."""
    batch, length, _ = x.shape
    return x.reshape(batch, length, count, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
