"""Pooling over the kept tokens. Over no token at all every pool gives zero, in both paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynamicvit.layers.attention import as_module, separate, softmax_attention
from dynamicvit.layers.masked_attention import masked_attention


def masked_mean(x: Tensor, decision: Tensor | None = None) -> Tensor:
    """Mean over the kept tokens, differentiable in the decision (Eq. 3 of the paper).

    Args:
        x: ``(B, M, C)``.
        decision: ``(B, M)``, 0 or 1, or how many patches each counts for; ``None`` when all
            are kept and count alike.

    Returns:
        ``(B, C)``; zero for an image that keeps nothing, where the released code divides by zero.
    """
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], x.shape[2])
    if decision is None:
        return x.mean(dim=1)
    decision = decision.to(torch.promote_types(x.dtype, torch.float32))
    count = decision.sum(dim=1, keepdim=True)
    # Divided before the sum: half precision can neither count past 256 nor hold a large total.
    weight = decision / torch.where(count > 0.5, count, torch.ones_like(count))
    return (x * weight.to(x.dtype)[..., None]).sum(dim=1)


def masked_max(x: Tensor, decision: Tensor | None = None) -> Tensor:
    """Maximum over the kept tokens.

    Args:
        x: ``(B, M, C)``.
        decision: ``(B, M)``, 0 or 1; ``None`` when all are kept.

    Returns:
        ``(B, C)``; zero for an image that keeps nothing.
    """
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], x.shape[2])
    if decision is None:
        return x.amax(dim=1)
    kept = decision[..., None] > 0.5
    peak = x.masked_fill(~kept, float("-inf")).amax(dim=1)
    return torch.where(kept.any(dim=1), peak, torch.zeros_like(peak))


def attention_pool(pool: Any, x: Tensor, weight: Tensor | None) -> Tensor:
    """timm's ``AttentionPoolLatent`` over the kept tokens.

    Args:
        pool: the network's pooling module.
        x: ``(B, M, C)``.
        weight: ``(B, M)``, decisions or sizes, or ``None``.

    Returns:
        ``(B, C)``; zero for an image that keeps nothing.
    """
    batch, length, width = x.shape  # the networks' pools keep the width
    if length == 0:
        return x.new_zeros(batch, width)

    def by_parts(x: Tensor) -> Tensor:
        latent = pool.latent.expand(batch, -1, -1)
        query = pool.q(latent).unflatten(-1, (pool.num_heads, pool.head_dim))
        key, value = separate(pool.kv(x), pool.num_heads, 2)
        query, key = pool.q_norm(query.transpose(1, 2)), pool.k_norm(key)
        if weight is None:
            out = softmax_attention(query, key, value)
        else:
            out = masked_attention(query, key, value, weight, keep_self=False)
        out = pool.proj_drop(pool.proj(out.transpose(1, 2).reshape(batch, pool.latent_len, -1)))
        if pool.mlp is not None:
            out = out + pool.mlp(pool.norm(out))
        out = out[:, 0] if pool.pool == "token" else out.mean(dim=1)
        if weight is None:
            return out
        return torch.where(weight.sum(dim=1, keepdim=True) > 0.5, out, torch.zeros_like(out))

    return as_module(pool, by_parts, x)
