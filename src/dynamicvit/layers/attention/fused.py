"""Attention under a decision by a kernel that knows nothing of decisions.

A softmax is linear in its values. With ``w_ij = exp(P_ij)`` and ``G_ij = 1 if i == j else d_j``,
Eq. 10-11 are

    out_i = (sum_j w_ij d_j v_j + (1 - d_i) w_ii v_i) / (sum_j w_ij d_j + (1 - d_i) w_ii).

Over the sum of all ``w_ij``, the sums are the usual attention to the values ``d_j v_j`` and to one
more column of values, ``d_j`` itself. What is left, ``w_ii`` over that sum, is the weight of one
more key, whose logit is ``P_ii`` and whose only value is a 1 in a column of its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.layers.attention.explicit import MAX_DROPPED_GAP, explicit_attention
from dynamicvit.layers.attention.undecided import softmax_attention

#: The least share of all weight that a query's kept keys may have here. From a smaller one the
#: decision of a dropped key would get a gradient beyond exp(gap), where the explicit form holds it,
#: and the kept keys would soon be lost to underflow.
MIN_KEPT_SHARE = math.exp(-MAX_DROPPED_GAP)

#: Fused kernels want heads whose width is a multiple of this.
_ALIGNMENT = 8


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, decision: Tensor, *, keep_self: bool = True
) -> Tensor:
    """Attention under a decision that builds no ``(B, H, Q, M)`` matrix of its own.

    Values and gradients are those of :func:`~dynamicvit.layers.attention.explicit.explicit_attention`. An
    image where the kept keys of a query have less than :data:`MIN_KEPT_SHARE` is run by it, so what
    it promises at any gap between logits holds here too.

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
