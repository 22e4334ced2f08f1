"""How training draws decisions so that the choice is differentiable (Section 3.2, Eq. 6-7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import top_k

#: How far a given decision may be from 0 or 1: straight-through estimators leave a rounding error.
_ROUNDING = 1e-3

Sampler = Callable[[Tensor, Tensor, int], Tensor]
"""How training draws a stage's decisions.

Called with the keep scores ``(B, M)`` (log-odds), the decisions so far ``(B, M)`` and k, the number
of tokens the schedule keeps; returns this stage's decisions ``(B, M)``, 0 or 1 in the forward pass
and differentiable in the keep scores.
"""


def gumbel_sampler(
    keep_scores: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
) -> Tensor:
    """The paper's draw: each token for itself, by Gumbel-Softmax with temperature 1 (Eq. 6).

    Chance and the ratio loss decide how many tokens are kept; ``k`` is not used.

    Args:
        keep_scores: ``(B, M)``, log-odds.
        decision: ``(B, M)`` decisions so far; not used, a dropped token stays dropped anyway.
        k: not used.
        noise: ``(B, M, 2)`` of the standard exponential distribution, whose negative logarithm is
            Gumbel's; by default drawn here.

    Returns:
        ``(B, M)`` with a straight-through gradient.
    """
    del decision, k
    score = _perturbed(keep_scores, noise)
    return _straight_through((score >= 0).to(score.dtype), torch.sigmoid(score))


def gumbel_top_k_sampler(
    keep_scores: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
) -> Tensor:
    """A draw of exactly k tokens, as inference makes it: the k best by perturbed keep score.

    The same Gumbel noise as in :func:`gumbel_sampler` is added to both columns, but the tokens of
    an image then compete for the k places instead of being drawn one by one. So the network trains
    with the number of tokens it will have at inference, from the first step on. The gradient is
    that of a sigmoid around the image's own cut (midway between the k-th and the next).

    Args:
        keep_scores: ``(B, M)``, log-odds.
        decision: ``(B, M)`` decisions so far; dropped tokens do not compete.
        k: the number of tokens to keep; an image with fewer tokens keeps them all.
        noise: as for :func:`gumbel_sampler`.

    Returns:
        ``(B, M)`` with a straight-through gradient.
    """
    return _cut_at_k(_perturbed(keep_scores, noise), decision, k)


def best_k_sampler(
    keep_scores: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
) -> Tensor:
    """No draw: the k best, by the rule that inference uses; training then sees what inference sees.

    Args:
        keep_scores: ``(B, M)``, log-odds.
        decision: ``(B, M)`` decisions so far; dropped tokens do not compete.
        k: the number of tokens to keep; an image with fewer tokens keeps them all.
        noise: not used.

    Returns:
        ``(B, M)`` with a straight-through gradient.
    """
    del noise
    return _cut_at_k(keep_scores, decision, k)


def _cut_at_k(score: Tensor, decision: Tensor, k: int) -> Tensor:
    """1 for the k highest scores among the kept, with the gradient of a sigmoid at the cut."""
    kept = decision.detach() > 0.5
    if k >= score.shape[1]:  # nothing to cut
        hard, cut = torch.ones_like(score), torch.zeros_like(score[:, :1])
    else:
        ranked = score.detach().masked_fill(~kept, float("-inf"))
        hard = torch.zeros_like(score).scatter(1, top_k(ranked, k), 1.0)
        cut = ranked.topk(k + 1, dim=1).values[:, k - 1 :].mean(dim=1, keepdim=True)
        cut = torch.where(cut.isfinite(), cut, torch.zeros_like(cut))  # fewer than k + 1 were left
    return _straight_through(hard, torch.sigmoid(score - cut))


def _perturbed(keep_scores: Tensor, noise: Tensor | None) -> Tensor:
    """``(B, M)``: keep minus drop after Gumbel noise on both.

    Between two classes the Gumbel-Softmax with temperature 1 is the sigmoid of this difference, and
    its argmax the sign. Written so, an infinite noise gives 0 or 1 instead of NaN.
    """
    if noise is None:
        noise = keep_scores.new_empty(*keep_scores.shape, 2).exponential_()
    keep, drop = noise.log().unbind(dim=-1)
    return keep_scores - keep + drop


def _straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Exactly ``hard`` in the forward pass, the gradient of ``soft`` in the backward pass."""
    return hard + (soft - soft.detach())


def check_decisions(decisions: Sequence[Tensor], stages: int, shape: tuple[int, int]) -> None:
    """Check decisions that were made elsewhere.

    Args:
        decisions: for each stage.
        stages: how many there are.
        shape: ``(B, N)``.

    Raises:
        InputError: for another number or shape, or values that are neither 0 nor 1.
    """
    if len(decisions) != stages or any(decision.shape != shape for decision in decisions):
        raise InputError(
            f"decisions must be {stages} tensors of shape {shape}, "
            f"got {[tuple(decision.shape) for decision in decisions]}"
        )
    if torch.compiler.is_compiling():  # looking at values would break the graph
        return
    for decision in decisions:
        values = decision.detach().float()
        wrong = ~(torch.minimum(values.abs(), (values - 1).abs()) <= _ROUNDING)
        if wrong.any():
            raise InputError(f"decisions must be 0 or 1, got {values[wrong][0].item():.4g}")
