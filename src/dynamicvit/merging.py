"""Merging: a dropped token becomes part of the kept one that is most like it.

The paper drops tokens without a trace. Two later ideas make them cheap to miss: a dropped token
joins its nearest kept one (Wei et al., "Joint Token Pruning and Squeezing", CVPR 2023, Section 3),
and a token made of several counts in attention for as many (Bolya et al., "Token Merging", ICLR
2023, Section 3, Eq. 1). Then it costs little to drop a token that has a good likeness among the
others, however much the answer hangs on it, and the choice takes that into account, which neither
of the two does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.decisions import groups_of, log_odds, regroup
from dynamicvit.tokens import Tokens

#: Power of the unlikeness in what a token is worth; 1 and 2 were tried (docs/results.md).
UNLIKENESS_POWER = 2.0

#: Tokens less unlike than this are the same: bfloat16 does not tell them apart.
LEAST_UNLIKENESS = 1e-3


def likeness(tokens: Tokens) -> Tensor:
    """``(B, M, M)``: cosine of the angle between any two patch tokens. Without gradient."""
    direction = F.normalize(tokens.patches.detach().float(), dim=-1)
    return direction @ direction.transpose(1, 2)


def discounted(log_probs: Tensor, alike: Tensor, alive: Tensor | None = None) -> Tensor:
    """What tokens are worth where those that leave merge.

    Merging a token moves it to the one that it becomes part of: its worth is the odds of keeping it
    times a power of how far that is: 1 minus the cosine to the nearest token with better odds.

    Args:
        log_probs: ``(B, M, 2)`` of keeping and dropping each token, where those that leave are
            gone.
        alike: of :func:`likeness`.
        alive: ``(B, M)`` bool, which tokens there are; by default all.

    Returns:
        ``(B, M, 2)`` log-probabilities, in the same columns.
    """
    odds = log_odds(log_probs)
    better = odds[:, None, :] > odds[:, :, None]
    if alive is not None:
        better = better & alive[:, None, :]
    nearest = alike.masked_fill(~better, -1.0).amax(dim=-1)
    odds = odds + UNLIKENESS_POWER * (1.0 - nearest).clamp(min=LEAST_UNLIKENESS).log()
    return torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=-1)


def most_alike(alike: Tensor, stays: Tensor) -> Tensor:
    """``(B, M)``: position of the token that stays and is most like each.

    Args:
        alike: of :func:`likeness`.
        stays: ``(B, M)`` bool. Where none stays, the position means nothing.
    """
    return alike.masked_fill(~stays[:, None, :], float("-inf")).argmax(dim=-1)


def join(tokens: Tokens, gone: Tensor, into: Tensor, num_patches: int) -> Tokens:
    """The tokens after some have become part of others; all are still held.

    A token becomes the mean of its patches, and counts for as many. Differentiable in the tokens
    and in ``gone``.

    Args:
        tokens: M patch tokens.
        gone: ``(B, M)``, 1 for a token that becomes part of another, which is not gone; else 0.
        into: ``(B, M)`` positions of those others; those of tokens that stay mean nothing.
        num_patches: N, the number of patches of the image.

    Returns:
        Tokens in which the gone ones are as they were, and no patch's.
    """
    patches = tokens.patches
    size = torch.ones_like(gone) if tokens.size is None else tokens.size
    moved = gone * size
    total = size.scatter_add(1, into, moved)
    # The shares sum to 1; exactly 1 for a token that stays alone: it is not rounded at every stage.
    own = (size / total).to(patches.dtype)[..., None]
    theirs = (moved / total.gather(1, into)).to(patches.dtype)[..., None]
    rows = into[..., None].expand_as(patches)
    joined = (patches * own).scatter_add(1, rows, patches * theirs)
    here = torch.arange(into.shape[1], device=into.device).expand_as(into)
    now = torch.where(gone > 0.5, into, here)
    return replace(
        tokens,
        x=torch.cat([tokens.x[:, : tokens.num_prefix], joined], dim=1),
        size=total.detach(),
        groups=regroup(groups_of(tokens, num_patches), now),
        heads=None,
    )
