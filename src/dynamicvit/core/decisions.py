"""Decisions: which tokens stay. Drawing them, cutting at the best k, and leading them back.

Training draws decisions from the keep probabilities so that the choice is differentiable
(Section 3.2, Eq. 6-7); inference keeps the k best (Section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dynamicvit.core.prediction import KEEP
from dynamicvit.layers.tokens import Tokens

Sampler = Callable[[Tensor, Tensor, int], Tensor]
"""How training draws a stage's decisions.

Called with the log-probabilities ``(B, M, 2)``, the decisions so far ``(B, M)`` and k, the number
of tokens the schedule keeps; returns this stage's decisions ``(B, M)``, 0 or 1 in the forward pass
and differentiable in the log-probabilities.
"""


def gumbel_sampler(
    log_probs: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
) -> Tensor:
    """The paper's draw: each token for itself, by Gumbel-Softmax with temperature 1 (Eq. 6).

    How many tokens stay is left to chance and to the ratio loss; ``k`` is not used.

    Args:
        log_probs: ``(B, M, 2)``.
        decision: ``(B, M)`` decisions so far; not used, a dropped token stays dropped anyway.
        k: not used.
        noise: ``(B, M, 2)`` of the standard exponential distribution, whose negative logarithm is
            Gumbel's; by default drawn here.

    Returns:
        ``(B, M)`` with a straight-through gradient.
    """
    del decision, k
    score = _perturbed_score(log_probs, noise)
    return _straight_through((score >= 0).to(score.dtype), torch.sigmoid(score))


def gumbel_top_k_sampler(
    log_probs: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
) -> Tensor:
    """A draw of exactly k tokens, as inference makes it: the k best by perturbed keep score.

    The same Gumbel noise as in :func:`gumbel_sampler` is added to both columns, but the tokens of
    an image then compete for the k places instead of being drawn one by one. So the network trains
    with the number of tokens it will have at inference, from the first step on. The gradient is
    that of a sigmoid around the image's own cut (midway between the k-th and the next).

    Args:
        log_probs: ``(B, M, 2)``.
        decision: ``(B, M)`` decisions so far; dropped tokens do not compete.
        k: the number of tokens to keep; an image with fewer tokens left keeps them all.
        noise: as for :func:`gumbel_sampler`.

    Returns:
        ``(B, M)`` with a straight-through gradient.
    """
    return _cut_at_k(_perturbed_score(log_probs, noise), decision, k)


def best_k_sampler(
    log_probs: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
) -> Tensor:
    """No draw: the k best, by the rule that inference uses; training then sees what inference sees.

    Args:
        log_probs: ``(B, M, 2)``.
        decision: ``(B, M)`` decisions so far; dropped tokens do not compete.
        k: the number of tokens to keep; an image with fewer tokens left keeps them all.
        noise: not used.

    Returns:
        ``(B, M)`` with a straight-through gradient.
    """
    del noise
    return _cut_at_k(log_odds(log_probs), decision, k)


def log_odds(log_probs: Tensor) -> Tensor:
    """``(B, M)``: log-probability of keeping minus that of dropping, from ``(B, M, 2)``."""
    return log_probs[..., KEEP] - log_probs[..., 1 - KEEP]


def log_probs_of(odds: Tensor) -> Tensor:
    """``(B, M, 2)`` log-probabilities of keeping and dropping, from log-odds ``(B, M)``."""
    columns = [torch.zeros_like(odds), torch.zeros_like(odds)]
    columns[KEEP] = odds
    return torch.stack(columns, dim=-1).log_softmax(dim=-1)


def _cut_at_k(score: Tensor, decision: Tensor, k: int) -> Tensor:
    """1 for the k highest scores among the alive, with the gradient of a sigmoid at the cut."""
    alive = decision.detach() > 0.5
    if k >= score.shape[1]:  # nothing to cut
        hard, cut = torch.ones_like(score), torch.zeros_like(score[:, :1])
    else:
        best = score.detach().masked_fill(~alive, float("-inf")).topk(k + 1, dim=1)
        hard = torch.zeros_like(score).scatter(1, best.indices[:, :k], 1.0)
        cut = best.values[:, k - 1 :].mean(dim=1, keepdim=True)
        cut = torch.where(cut.isfinite(), cut, torch.zeros_like(cut))  # fewer than k + 1 were left
    return _straight_through(hard, torch.sigmoid(score - cut))


def _perturbed_score(log_probs: Tensor, noise: Tensor | None) -> Tensor:
    """``(B, M)``: keep minus drop after Gumbel noise on both.

    Between two classes the Gumbel-Softmax with temperature 1 is the sigmoid of this difference, and
    its argmax the sign. Written so, an infinite noise gives 0 or 1 instead of NaN.
    """
    if noise is None:
        noise = torch.empty_like(log_probs).exponential_()
    return log_odds(log_probs - noise.log())


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Exactly ``hard`` in the forward pass, the gradient of ``soft`` in the backward pass."""
    return hard + (soft - soft.detach())


def top_k(keep_score: Tensor, k: int) -> Tensor:
    """Positions of the k highest keep scores, in ascending order (Section 3.4).

    Args:
        keep_score: ``(B, M)``; anything that grows with the probability of keeping.
        k: how many to keep, 0 to M.

    Returns:
        ``(B, k)`` positions among the M held tokens. Ascending, so that tokens stay in image order.
    """
    return keep_score.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


def gather_patches(tokens: Tokens, position: Tensor) -> Tokens:
    """Keep the prefix and the patch tokens at the given positions; the others are gone.

    Args:
        tokens: M held patch tokens.
        position: ``(B, K)`` positions among the held patch tokens, ascending.

    Returns:
        The tokens with K patches, their original indices and whatever else was known of them.
    """
    batch = tokens.x.shape[0]
    prefix = torch.arange(tokens.num_prefix, device=position.device).expand(batch, -1)
    rows = torch.cat([prefix, position + tokens.num_prefix], dim=1)
    x = _rows(tokens.x, rows)
    index = position if tokens.index is None else tokens.index.gather(1, position)
    decision = None if tokens.decision is None else tokens.decision.gather(1, position)
    size = None if tokens.size is None else tokens.size.gather(1, position)
    groups = tokens.groups
    if groups is not None:
        there = torch.arange(position.shape[1], device=position.device).expand_as(position)
        now = groups.new_full((batch, tokens.num_patches), -1).scatter(1, position, there)
        groups = regroup(groups, now)
    return replace(
        tokens, x=x, index=index, decision=decision, size=size, groups=groups, heads=None
    )


def _rows(x: Tensor, position: Tensor) -> Tensor:
    """Rows ``(B, K, C)`` of ``(B, T, C)``.

    Whole rows at a time, where ``gather`` looks up every number: ten times slower on a CPU.
    """
    batch, held, width = x.shape
    rows = x.reshape(batch * held, width).index_select(0, flat_rows(position, held))
    return rows.reshape(batch, position.shape[1], width)


def flat_rows(position: Tensor, held: int) -> Tensor:
    """Positions ``(B, K)`` in ``(B, T, C)`` as rows ``(B K)`` of ``(B T, C)``.

    Args:
        position: of rows of each image.
        held: T.
    """
    first = held * torch.arange(position.shape[0], device=position.device)[:, None]
    return (first + position).flatten()


def regroup(groups: Tensor, now: Tensor) -> Tensor:
    """Where each original patch is after the held tokens have moved or joined.

    Args:
        groups: ``(B, N)``, the held token that each patch is part of, -1 for none.
        now: ``(B, M)``, where each held token is now, -1 for nowhere.

    Returns:
        ``(B, N)``.
    """
    nowhere = now.new_full((now.shape[0], 1), -1)
    return torch.cat([now, nowhere], dim=1).gather(1, groups.masked_fill(groups < 0, now.shape[1]))


def gather_alive(tokens: Tokens, alive: Tensor) -> Tokens:
    """Let the patch tokens leave that are not alive.

    Args:
        tokens: M held patch tokens.
        alive: ``(B, M)``, 0 or 1. Images with fewer alive tokens than the fullest image of the
            batch keep some of the others, to fill the rows.
    """
    fullest = int((alive.detach() > 0.5).sum(dim=1).amax())
    if fullest == tokens.num_patches:
        return tokens
    return gather_patches(tokens, top_k(alive.detach(), fullest))


def unmask(tokens: Tokens) -> Tokens:
    """The same tokens without their decision, if it hides none: attention then needs no mask."""
    if tokens.decision is not None and (tokens.decision > 0.5).all():
        return replace(tokens, decision=None)
    return tokens


def to_image(values: Tensor, index: Tensor | None, num_patches: int, fill: float = 0.0) -> Tensor:
    """Lead per-token values back to the patches of the image.

    Args:
        values: ``(B, M)`` one value for each held token.
        index: ``(B, M)`` original patch of each token; ``None`` when they are all there, in order.
        num_patches: N, the number of patches of the image.
        fill: what a patch gets whose token is gone.

    Returns:
        ``(B, N)``, differentiable in ``values``.
    """
    if index is None:
        return values
    return values.new_full((values.shape[0], num_patches), fill).scatter(1, index, values)


def kept_patches(tokens: Tokens) -> Tensor:
    """``(B, M)``: which original patch each held token has the place of, ascending."""
    if tokens.index is not None:
        return tokens.index
    batch, held = tokens.patches.shape[:2]
    return torch.arange(held, device=tokens.x.device).expand(batch, -1)


def survivors(tokens: Tokens, num_patches: int) -> Tensor:
    """``(B, N)`` bool: which original patches the held tokens have the places of."""
    ones = torch.ones(tokens.patches.shape[:2], device=tokens.x.device)
    # By way of floats: TensorRT does not scatter booleans.
    return to_image(ones, tokens.index, num_patches) > 0


def places_of(tokens: Tokens) -> Tensor | None:
    """``(B, N)``: the patch that has the place of the token which each original patch is part of.

    A patch that is part of none has its own place; ``None`` when every held token is one patch.
    """
    groups, index = tokens.groups, tokens.index
    if groups is None or not tokens.num_patches:
        return None
    place = groups.clamp(min=0)
    place = place if index is None else index.gather(1, place)
    here = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    return torch.where(groups < 0, here, place)


def groups_of(tokens: Tokens, num_patches: int) -> Tensor:
    """``(B, N)``: position of the held token that each original patch is part of, -1 for none."""
    if tokens.groups is not None:
        return tokens.groups
    batch, held = tokens.patches.shape[:2]
    position = torch.arange(held, device=tokens.x.device).expand(batch, -1)
    return to_image(position, tokens.index, num_patches, fill=-1)
