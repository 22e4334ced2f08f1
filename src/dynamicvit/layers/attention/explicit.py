"""Attention under a decision, as the paper writes it (Section 3.4, Eq. 10-11).

With the numerical defects of the released code removed: see :func:`decided_softmax`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: A dropped key may exceed every kept one. Its weight in the forward pass is exactly zero, but the
#: gradient of its decision grows with exp(gap): beyond this gap it is held at exp(10) = 2.2e4,
#: which is large enough to say "bring it back" and still finite in half precision.
MAX_DROPPED_GAP = 10.0


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decision: Tensor,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    keep_self: bool = True,
) -> Tensor:
    """Attention under a decision, as Eq. 10-11 are written.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        decision: ``(B, M)``, 0 or 1.
        bias: broadcastable to ``(B, H, Q, M)``, added to the logits.
        dropout_p: dropout probability of the attention weights.
        keep_self: whether a token always sees itself; needs Q == M.

    Returns:
        ``(B, H, Q, D)``.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    # At least fp32: half precision can't hold exp(gap), and fp64 is not to be lost.
    precise = torch.promote_types(logits.dtype, torch.float32)
    weights = decided_softmax(logits.to(precise), decision.to(precise), keep_self=keep_self)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    return weights.to(value.dtype) @ value


def decided_softmax(logits: Tensor, decision: Tensor, *, keep_self: bool = True) -> Tensor:
    """Softmax over the kept keys, differentiable in the decision.

    ``A_ij = exp(P_ij) G_ij / sum_k exp(P_ik) G_ik`` with ``G_ij = 1 if i == j else decision_j``
    (Eq. 10-11). The mask multiplies the exponentials instead of being added to the logits, so that
    the decision of a dropped token still receives a gradient.

    The maximum that is subtracted runs over the kept keys and self only: a large dropped logit
    can't push the kept ones into underflow, and the result equals a softmax over the tokens that
    are really there. A row without any kept key gives zeros.

    Args:
        logits: ``(B, H, Q, M)``.
        decision: ``(B, M)``, 0 or 1.
        keep_self: whether ``G_ii = 1``; needs Q == M.

    Returns:
        ``(B, H, Q, M)``, rows that sum to 1, or to 0 where nothing is kept.
    """
    keep = decision[:, None, None, :]
    if keep_self:
        identity = torch.eye(logits.shape[-1], dtype=keep.dtype, device=keep.device)
        keep = keep + identity * (1 - keep)
    dropped = keep.detach() < 0.5
    peak = logits.detach().masked_fill(dropped, float("-inf")).amax(dim=-1, keepdim=True)
    peak = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    weights = (logits - peak).clamp(max=MAX_DROPPED_GAP).exp() * keep
    total = weights.sum(dim=-1, keepdim=True)
    return weights / torch.where(total > 0, total, torch.ones_like(total))
