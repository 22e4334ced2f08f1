"""Attention without a decision: the usual softmax, by the fused kernel or by plain products."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from dynamicvit.layers.attention.choice import products_beat_the_kernel


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention over all keys.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        bias: broadcastable to ``(B, H, Q, M)``, added to the logits.
        dropout_p: dropout probability of the attention weights.
        scale: of the products of query and key; by default 1/√D.

    Returns:
        ``(B, H, Q, D)``.
    """
    if not products_beat_the_kernel(query):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout_p, scale=scale
        )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query if factor == 1.0 else query * factor) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(dim=-1)
    return (F.dropout(weights, dropout_p) if dropout_p > 0.0 else weights) @ value
