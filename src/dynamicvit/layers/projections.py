"""Query, key and value by one layer; where only some tokens attend, only those have a query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.layers.onednn import OneDNNLinear


def fused_qkv(
    qkv: nn.Module, x: Tensor, num_heads: int, queries: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one layer that gives all three.

    Args:
        qkv: from ``(B, T, C)`` to ``(B, T, 3 H D)``.
        x: ``(B, T, C)``.
        num_heads: H.
        queries: how many of the first tokens attend; ``None`` for all.

    Returns:
        ``(B, H, T or queries, D)``, ``(B, H, T, D)`` and ``(B, H, T, D)``.
    """
    if queries is not None and is_plain(qkv):
        return partial_qkv(x, qkv.weight, qkv.bias, num_heads, queries)
    query, key, value = separate(qkv(x), num_heads)
    return query[:, :, :queries], key, value


def partial_qkv(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the layer's weights, without the queries of tokens that don't attend.

    Args:
        x: ``(B, T, C)``.
        weight: ``(3 H D, C)``.
        bias: ``(3 H D)`` or ``None``.
        num_heads: H.
        queries: how many of the first tokens attend.
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


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer is no more than its weights, so that it may be taken apart.

    Others compute something else, or want to be called: layers that are quantized or have an
    adapter (LoRA), weights that are no plain tensors, hooks, a ``forward`` of the instance's own.
    """
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    if type(layer) not in (nn.Linear, OneDNNLinear) or "forward" in vars(layer) or any(hooks):
        return False
    # A compiler or exporter has put its own kind of tensors there.
    return torch.compiler.is_compiling() or type(layer.weight) in (nn.Parameter, torch.Tensor)
