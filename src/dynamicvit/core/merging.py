"""Merging: a dropped token becomes part of the kept one that is most like it.

The paper drops tokens without a trace. Two later ideas make them cheap to miss: a dropped token
joins its nearest kept one (Wei et al., "Joint Token Pruning and Squeezing", CVPR 2023, Section 3),
and a token made of several counts in attention for as many (Bolya et al., "Token Merging", ICLR
2023, Section 3, Eq. 1). Then it costs little to drop a token that has a good likeness among the
others, however much the answer hangs on it, and the choice takes that into account, which neither
of the two does.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from dynamicvit.layers.tokens import Tokens, flat_rows, regroup

#: Power of the distance; 1 and 2 were tried (docs/notebook/small-data-recipe.md).
UNLIKENESS_POWER = 2.0

#: Tokens less unlike than this are the same.
LEAST_UNLIKENESS = 1e-3

#: Log-odds less apart than this are equal: rounding must not decide which of two twins is dropped.
LEAST_ODDS = 1e-2


def likeness(tokens: Tokens) -> Tensor:
    """``(B, M, M)``: cosine of the angle between any two patch tokens. Without gradient."""
    return cosines(tokens.patches, tokens.patches)


def cosines(some: Tensor, others: Tensor) -> Tensor:
    """Cosine of the angle between any of some rows and any of others. Without gradient.

    In float32 at least, under autocast too: half precision can't tell near cosines apart.

    Args:
        some: ``(B, M, D)``.
        others: ``(B, L, D)``.

    Returns:
        ``(B, M, L)``.
    """
    wide = torch.promote_types(some.dtype, torch.float32)
    some, others = some.detach().to(wide), others.detach().to(wide)
    device = some.device.type
    # Not entered without need: exporters write down contexts, and the meta device has none.
    rounds = not some.is_meta and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if rounds else nullcontext():
        products = torch.bmm(some, others.transpose(1, 2))
    length, other = (rows.norm(dim=-1).clamp(min=1e-12) for rows in (some, others))
    return products / (length[:, :, None] * other[:, None])


def halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``(B, M, ...)`` those at even positions, ⌈M/2⌉, and those at odd ones."""
    return values[:, ::2], values[:, 1::2]


def discounted(keep_scores: Tensor, alike: Tensor, kept: Tensor | None = None) -> Tensor:
    """Keep scores where dropped tokens merge, by which tokens are then ranked.

    Merging moves a token to the one that it becomes part of. So the odds of keeping it are
    multiplied by a power of that distance: 1 minus the cosine to the nearest token with better
    odds. Of tokens with equal odds the first one counts as the better, in every runtime.

    Args:
        keep_scores: ``(B, M)`` log-odds, as if dropped tokens were removed.
        alike: of :func:`likeness`.
        kept: ``(B, M)`` bool, which tokens there are; by default all.

    Returns:
        ``(B, M)`` log-odds.
    """
    better = has_better(keep_scores)
    if kept is not None:
        better = better & kept[:, None, :]
    nearest = _among(alike, better).amax(dim=-1).clamp(min=-1.0)  # -1 where none is better
    return keep_scores + missed(nearest)


def has_better(keep_scores: Tensor) -> Tensor:
    """``(B, M, M)`` bool: for each token, which others have better odds.

    Of tokens with equal odds the first one counts as the better, in every runtime.

    Args:
        keep_scores: ``(B, M)`` log-odds.
    """
    ahead = keep_scores[:, None, :] - keep_scores[:, :, None]
    exact = torch.promote_types(ahead.dtype, torch.float32)
    here = torch.arange(keep_scores.shape[1], dtype=exact, device=ahead.device)
    return ahead > (here - here[:, None]).sign_().mul_(LEAST_ODDS)


def missed(nearest: Tensor) -> Tensor:
    """What a token's log-odds change by where it becomes part of one with that cosine."""
    return UNLIKENESS_POWER * (1.0 - nearest).clamp(min=LEAST_UNLIKENESS).log()


def most_alike(alike: Tensor, kept: Tensor) -> Tensor:
    """``(B, M)``: position of the kept token that is most like each.

    Args:
        alike: of :func:`likeness`.
        kept: ``(B, M)`` bool. Where none is kept, the position means nothing.
    """
    return _among(alike, kept[:, None, :]).max(dim=-1).indices


def _among(alike: Tensor, some: Tensor) -> Tensor:
    """Cosines with some tokens as they are, with others below -1.

    By arithmetic: on a CPU, to fill or to choose by a mask of that size takes several times longer.

    Args:
        alike: ``(B, M, M)``.
        some: bool that broadcasts to it.
    """
    return alike.sub((~some).to(alike.dtype), alpha=3.0)


def sizes_of(tokens: Tokens) -> Tensor:
    """``(B, M)``: how many patches each held token is made of."""
    if tokens.size is not None:
        return tokens.size
    wide = torch.promote_types(tokens.x.dtype, torch.float32)
    return tokens.x.new_ones(tokens.patches.shape[:2], dtype=wide)


def join(
    tokens: Tokens,
    dropped: Tensor,
    into: Tensor,
    weight: Tensor | None = None,
) -> Tokens:
    """The tokens after some have become part of others; all are still held.

    A token becomes the mean of its patches, and counts for as many. What tokens become is
    differentiable in the tokens and in ``dropped``; how many they count for has no gradient.

    Args:
        tokens: M patch tokens.
        dropped: ``(B, M)``, 1 for a token that becomes part of another, which is kept; else 0.
        into: ``(B, M)`` positions of those others; those of kept tokens mean nothing.
        weight: ``(B, M)``, what each token counts for in the mean; by default its patches.

    Returns:
        Tokens in which the dropped ones are as they were, and no patch's.
    """
    patches = tokens.patches
    size = sizes_of(tokens)
    now_size = total = added(size, into, dropped * size)
    if weight is None:
        weight = size
    else:
        total = added(weight, into, dropped * weight)
    # Sums of many shares need more than half precision. They are 1 together, and exactly 1 for a
    # token that nothing joins: it is not rounded at every stage.
    own, theirs = weight / total, dropped * weight / total.gather(1, into)
    joined = added(patches * own[..., None], into, patches * theirs[..., None])
    joined = joined.to(patches.dtype)
    here = torch.arange(into.shape[1], device=into.device).expand_as(into)
    now = torch.where(dropped > 0.5, into, here)
    return replace(
        tokens,
        x=torch.cat([tokens.x[:, : tokens.num_prefix], joined], dim=1),
        size=now_size.detach(),
        groups=regroup(tokens.membership(), now),
        heads=None,
    )


def added(x: Tensor, position: Tensor, rows: Tensor) -> Tensor:
    """``(B, M)`` or ``(B, M, C)`` after ``(B, R)`` or rows ``(B, R, C)`` have been added.

    Whole rows at a time, seven times faster on a CPU than number by number; but not every runtime
    that a graph is exported to can do that, and a compiler sees to it by itself. torch's older
    exporter to ONNX loses all but one of the rows that go to one place, so there it is a product.

    Args:
        x: what they are added to.
        position: ``(B, R)``, where.
        rows: what is added.
    """
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
        goes = position[:, None] == torch.arange(x.shape[1], device=x.device)[:, None]
        return x + torch.einsum("bmr,br...->bm...", goes.to(x.dtype), rows)
    if x.ndim == 2:
        return x.scatter_add(1, position, rows)
    if torch.compiler.is_compiling():
        return x.scatter_add(1, position[..., None].expand_as(rows), rows)
    batch, held, width = x.shape
    flat = x.reshape(batch * held, width)
    flat = flat.index_add(0, flat_rows(position, held), rows.reshape(-1, width))
    return flat.reshape(batch, held, width)
