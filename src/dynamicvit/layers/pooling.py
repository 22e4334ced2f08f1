"""Pooling over the kept tokens. Over no token at all every pool gives zero, in both paths."""

from __future__ import annotations

import torch
from torch import Tensor


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
