"""Attention under a decision: the masked path's attention, differentiable in the decision.

Section 3.4 of the paper (attention masking), Eq. 10-11, in two forms with the same values and
gradients. :func:`explicit_attention` is the one to read next to the paper, with the numerical
defects of the released code removed (:func:`decided_softmax`). :func:`fused_attention` never builds
the matrix of weights, so that a fused kernel can do the work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.layers.attention import softmax_attention

#: With fewer keys than so many times the heads' width, the explicit form is the faster one: a
#: column of the weights is then little more than the columns that the fused form adds and mixes.
#: Measured by ``benchmarks/training_step.py``; the table is in
#: docs/notebook/training-step.md.
KEYS_PER_WIDTH = 2

#: A dropped key may exceed every kept one. Its weight in the forward pass is exactly zero, but the
#: gradient of its decision grows with exp(gap): beyond this gap it is held at exp(10) = 2.2e4,
#: which is large enough to say "bring it back" and still finite in half precision.
MAX_DROPPED_GAP = 10.0

#: The least share of all weight that a query's kept keys may have here. From a smaller one the
#: decision of a dropped key would get a gradient beyond exp(gap), where the explicit form holds it,
#: and the kept keys would soon be lost to underflow.
MIN_KEPT_SHARE = math.exp(-MAX_DROPPED_GAP)

#: Fused kernels want heads whose width is a multiple of this.
_ALIGNMENT = 8


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decision: Tensor,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    keep_self: bool = True,
) -> Tensor:
    """Scaled dot-product attention in which dropped keys get no weight.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        decision: ``(B, M)`` decision of each key, 0 or 1.
        bias: broadcastable to ``(B, H, Q, M)``, added to the logits.
        dropout_p: dropout probability of the attention weights.
        keep_self: whether a token always sees itself, as in self-attention; needs Q == M. ``False``
            for attention pooling, where the query is not one of the keys.

    Returns:
        ``(B, H, Q, D)``.
    """
    if fused_form_fits(query, key, value, bias=bias, dropout_p=dropout_p):
        return fused_attention(query, key, value, decision, keep_self=keep_self)
    return explicit_attention(
        query, key, value, decision, bias=bias, dropout_p=dropout_p, keep_self=keep_self
    )


def fused_form_fits(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, dropout_p: float
) -> bool:
    """Whether attention under a decision takes the fused form.

    It does where that is the faster one, unless it can't:

    - in half precision, whose smallest numbers don't reach down as far as a dropped key can be up;
    - with dropout, which is of weights that this form does not have;
    - with a bias: kernels that know its gradient build the matrix;
    - without values (meta device, a graph being compiled): some of them decide what is run.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        bias: added to the logits, or ``None``.
        dropout_p: dropout probability of the attention weights.
    """
    return (
        key.shape[-2] >= KEYS_PER_WIDTH * key.shape[-1]
        and query.dtype == key.dtype == value.dtype != torch.float16
        and bias is None
        and dropout_p == 0.0
        and not query.is_meta
        and not torch.compiler.is_compiling()
    )


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
    """:func:`masked_attention` as Eq. 10-11 are written."""
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


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, decision: Tensor, *, keep_self: bool = True
) -> Tensor:
    """Attention under a decision that builds no ``(B, H, Q, M)`` matrix of its own.

    Values and gradients are those of :func:`explicit_attention`. A softmax is linear in its values.
    With ``w_ij = exp(P_ij)`` and ``G_ij = 1 if i == j else d_j``, Eq. 10-11 are

        out_i = (sum_j w_ij d_j v_j + (1 - d_i) w_ii v_i) / (sum_j w_ij d_j + (1 - d_i) w_ii).

    Over the sum of all ``w_ij``, the sums are the usual attention to the values ``d_j v_j`` and to
    one more column of values, ``d_j`` itself. What is left, ``w_ii`` over that sum, is the weight
    of one more key, whose logit is ``P_ii`` and whose only value is a 1 in a column of its own.

    An image where the kept keys of a query have less than :data:`MIN_KEPT_SHARE` is run by the
    explicit form, so what that promises at any gap between logits holds here too.

    Args:
        query: ``(B, H, Q, D)``, not in half precision.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        decision: ``(B, M)``, 0 or 1.
        keep_self: whether a token always sees itself; needs Q == M.

    Returns:
        ``(B, H, Q, D)``.
    """
    precise = torch.promote_types(value.dtype, torch.float32)
    decided = decision.to(precise)[:, None, :, None]
    kept = decided.to(value.dtype).expand(*value.shape[:-1], 1)
    if keep_self:
        out, share = _with_self(query, key, value, kept, 1 - decided)
    else:
        mixed = _mix(query * query.shape[-1] ** -0.5, key, torch.cat([value * kept, kept], dim=-1))
        out, share = mixed.to(precise).split((value.shape[-1], 1), dim=-1)
    lost = share.detach() < MIN_KEPT_SHARE
    images = lost.flatten(1).any(dim=1).nonzero().squeeze(1)
    if len(images) == 0:
        return (out / share).to(value.dtype)
    out = (out / share.masked_fill(lost, 1.0)).to(value.dtype)
    theirs = (tensor[images] for tensor in (query, key, value, decision))
    return out.index_copy(0, images, explicit_attention(*theirs, keep_self=keep_self))


def _with_self(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, dropped: Tensor
) -> tuple[Tensor, Tensor]:
    """Kept values mixed and self added, ``(B, H, Q, D)``, and their share, ``(B, H, Q, 1)``."""
    width, precise = value.shape[-1], dropped.dtype
    query = query * query.shape[-1] ** -0.5
    logit = (query * key).sum(dim=-1, keepdim=True, dtype=precise)
    # The one more key's logit is P_ii rounded to the queries' precision, and a constant. The factor
    # exp(logit - rounded) gives back what rounding took, and the gradient; neither can overflow.
    rounded = logit.detach().to(query.dtype)
    zero, one = torch.zeros_like(kept), kept.new_ones(1)
    mixed = _mix(
        torch.cat([query, rounded], dim=-1),
        _row(torch.cat([key, zero], dim=-1), F.pad(one, (width, 0))),
        _row(torch.cat([value * kept, kept, zero], dim=-1), F.pad(one, (width + 1, 0))),
    )
    out, share, itself = mixed.to(precise).split((width, 1, 1), dim=-1)
    itself = itself * (logit - rounded).exp() * dropped
    return out.addcmul(itself, value.to(precise)), share + itself


def _mix(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention without a scale, to values wider than the queries."""
    wide = -(-value.shape[-1] // _ALIGNMENT) * _ALIGNMENT
    padded = (F.pad(part, (0, wide - part.shape[-1])) for part in (query, key, value))
    return softmax_attention(*padded, scale=1.0)[..., : value.shape[-1]]


def _row(rows: Tensor, row: Tensor) -> Tensor:
    """One more row for each head."""
    return torch.cat([rows, row.expand(*rows.shape[:2], 1, -1)], dim=-2)
