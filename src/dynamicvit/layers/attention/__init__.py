"""Attention under a decision: the masked path's attention, differentiable in the decision.

Section 3.4 of the paper (attention masking), Eq. 10-11, in two forms with the same gradients:
:mod:`~dynamicvit.layers.attention.explicit` is the one to read next to the paper,
:mod:`~dynamicvit.layers.attention.fused` never builds the matrix of weights, so that a fused kernel can do
the work. :mod:`~dynamicvit.layers.attention.choice` says which of them runs.
"""

from __future__ import annotations

from torch import Tensor

from dynamicvit.layers.attention.choice import fused_form_fits
from dynamicvit.layers.attention.explicit import (
    MAX_DROPPED_GAP,
    decided_softmax,
    explicit_attention,
)
from dynamicvit.layers.attention.fused import fused_attention
from dynamicvit.layers.attention.undecided import softmax_attention

__all__ = [
    "MAX_DROPPED_GAP",
    "attend",
    "decided_softmax",
    "explicit_attention",
    "fused_attention",
    "softmax_attention",
]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    decision: Tensor | None = None,
    size: Tensor | None = None,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    keep_self: bool = True,
) -> Tensor:
    """Scaled dot-product attention in which dropped keys get no weight.

    Without a decision this is the usual attention of PyTorch.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        decision: ``(B, M)`` decision of each key, or ``None`` when all are kept.
        size: ``(B, M)``, how many equal keys each key stands for (proportional attention, Bolya et
            al. 2023, Eq. 1); ``None`` when each is one. Without gradient.
        bias: broadcastable to ``(B, H, Q, M)``, added to the logits (relative positions).
        dropout_p: dropout probability of the attention weights.
        keep_self: whether a token always sees itself, as in self-attention. ``False`` for
            attention pooling, where the query is not one of the keys.

    Returns:
        ``(B, H, Q, D)``.
    """
    if size is not None:  # exp(P + log s) = s · exp(P): any kernel that takes a bias will do
        logs = size.log().to(query.dtype)[:, None, None, :]
        bias = logs if bias is None else bias + logs
    if decision is None:
        return softmax_attention(query, key, value, bias=bias, dropout_p=dropout_p)
    if fused_form_fits(query, key, value, bias=bias, dropout_p=dropout_p):
        return fused_attention(query, key, value, decision, keep_self=keep_self)
    return explicit_attention(
        query, key, value, decision, bias=bias, dropout_p=dropout_p, keep_self=keep_self
    )
