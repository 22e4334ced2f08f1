"""Dynamic spatial sparsification: prediction modules for maps that stay whole (TPAMI 2023).

Every prediction module scores all positions anew, so a position on the cheap path may return to the
slow one; the three keep ρ, ρ - 0.2 and ρ - 0.4 of all positions there. The released training form
carries two maps, one as if every position were slow and one as if none were; where a decision
changes between modules, inference sees another value. Here both paths walk the one map:
:meth:`~dynamicvit.backbones.hierarchical.Hierarchical.run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynamicvit.backbones import Backbone, Hierarchical
from dynamicvit.core.method import NO_GRADIENT, Choice, Draw, GivenDecisions, Masked, Method
from dynamicvit.core.prediction import PredictionModule, init_weights
from dynamicvit.core.schedule import Policy, Schedule, check_keep_ratio
from dynamicvit.errors import InputError
from dynamicvit.layers.maps import CheapPath, Map
from dynamicvit.layers.tokens import Tokens, top_k

#: How much less each prediction module keeps than the one before.
STEP = 0.2


class OverMap(Choice):
    """Positions are chosen for the slow path; the others take the cheap one, and none leaves."""

    default_policy = "cheap"
    compares_images = False
    #: The cheap paths of the blocks up to the next stage, by block.
    cheap: nn.ModuleDict | None

    @classmethod
    def schedule(
        cls,
        bound: Backbone,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        policy: Policy | None = None,
    ) -> Schedule:
        """ρ, ρ - 0.2, ρ - 0.4, ... of all positions; by default as the paper has it."""
        assert isinstance(bound, Hierarchical)
        stages = bound.default_stages if stages is None else stages
        if not isinstance(keep_ratio, Sequence):
            keep_ratio = lowered(keep_ratio, len(stages))
        return Schedule.for_depth(len(bound.blocks), keep_ratio, stages, policy or "cheap")

    @classmethod
    def keep_ratio_of(cls, bound: Backbone, schedule: Schedule) -> float | None:
        """ρ, if the ratios are ρ, ρ - 0.2, ρ - 0.4, ..."""
        ratios = schedule.keep_ratios
        steps = (ratios[0] - STEP * stage for stage in range(len(ratios))) if ratios else ()
        same = all(math.isclose(a, b) for a, b in zip(ratios, steps, strict=True))
        return (ratios[0] if ratios else 1.0) if same else None

    def prune(
        self, tokens: Tokens, count: int, policy: Policy = "removed"
    ) -> tuple[Tokens, Tensor | None]:
        """The k best by keep score take the slow path."""
        assert isinstance(tokens, Map)
        scores = self.keep_scores(tokens)
        return tokens.directed(top_k(scores, count), self.cheap), scores

    def prune_to(self, tokens: Tokens, position: Tensor, policy: Policy = "removed") -> Tokens:
        """Those at the given positions, or with a ``(B, N)`` bool of theirs, take the slow path."""
        assert isinstance(tokens, Map)
        return tokens.directed(position, self.cheap)

    def mask(self, tokens: Tokens, count: int, policy: Policy, draw: Draw) -> Masked:
        """Both paths run, and the decision weighs them; "compact" runs each for its own alone."""
        assert isinstance(tokens, Map)
        if draw.masking == "zeroed":
            raise InputError("masking: a map has no dropped positions that could be zeroed")
        before = tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.float32)
        scores = None
        if draw.given is None:
            scores = self.keep_scores(tokens)
            decision = draw.sampler(scores, before, count)
        else:
            decision = draw.given.to(before.dtype)
            # Without the rounding error, which the pruned path does not see; gradients stay.
            decision = decision + (decision.round() - decision).detach()
        if draw.masking in NO_GRADIENT:
            decision = decision.detach()
            return Masked(tokens.directed(decision > 0.5, self.cheap), decision, scores)
        return Masked(tokens.masked(decision, self.cheap), decision, scores)


class SpatialPrediction(OverMap, PredictionModule):
    """The paper's prediction module, and the cheap paths of the blocks that obey it.

    Args:
        dim: C, the width of the map; a multiple of 4.
        eps: of the norm.
        cheap: a cheap path for each block up to the next stage, by block.
    """

    def __init__(self, dim: int, eps: float, cheap: Mapping[str, CheapPath]) -> None:
        super().__init__(dim)
        self.norm.eps = eps
        self.cheap = nn.ModuleDict(cheap)
        self.cheap.apply(init_weights)

    @classmethod
    def for_stages(cls, bound: Backbone, stages: Sequence[int]) -> list[Method]:
        """Each with the cheap paths of the blocks from its own to the next one's."""
        assert isinstance(bound, Hierarchical)
        ends = (*stages, len(bound.blocks))[1:]
        return [
            cls(bound.width, bound.eps, {str(i): bound.cheap_path() for i in range(first, end)})
            for first, end in zip(stages, ends, strict=True)
        ]

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """``(B, N)``; the global feature is the mean over all positions."""
        return self(tokens.patches)


class GivenOverMap(OverMap, GivenDecisions):
    """For decisions that are made elsewhere; without a cheap path, which then gives nothing."""

    cheap = None


#: Methods and what they are on a map that stays whole.
_OVER_MAPS: dict[type[Method], type[Method]] = {
    PredictionModule: SpatialPrediction,
    GivenDecisions: GivenOverMap,
}


def method_for(kind: type[Method], bound: Backbone) -> type[Method]:
    """What a method is on this network: itself, or its form for maps that stay whole.

    Raises:
        InputError: if it has none.
    """
    if kind.for_clips and bound.frames is None:
        raise InputError(f"method {kind.name!r} is for clips; {bound.family} takes images")
    if isinstance(bound, Hierarchical) == issubclass(kind, OverMap):
        return kind
    if kind not in _OVER_MAPS:
        raise InputError(
            f"method {kind.name or kind.__name__!r} is not for {bound.family}, whose maps stay "
            "whole: its method is 'dynamicvit'"
        )
    return _OVER_MAPS[kind]


def check_policy(schedule: Schedule, bound: Backbone) -> None:
    """Raise ``InputError`` if positions can't become what a schedule says on this network."""
    whole = isinstance(bound, Hierarchical)
    if schedule.stages and whole != (schedule.policy == "cheap"):
        right = "'cheap', as its maps stay whole" if whole else "'removed', 'merged' or 'bypassed'"
        raise InputError(f"policy {schedule.policy!r}: that of {bound.family} is {right}")


def least_keep_ratio(kind: type[Method], num_stages: int) -> float:
    """What ρ must be above: below 0.4 the last of three stages would keep less than nothing."""
    return STEP * max(0, num_stages - 1) if issubclass(kind, OverMap) else 0.0


def lowered(keep_ratio: float, num_stages: int) -> tuple[float, ...]:
    """ρ, ρ - 0.2, ρ - 0.4, ..., as the released code computes them, to the bit."""
    check_keep_ratio(keep_ratio)
    ratios = tuple(keep_ratio - STEP * stage for stage in range(num_stages))
    if ratios and ratios[-1] <= 0:
        raise InputError(
            f"keep ratio {keep_ratio} leaves ρ - {STEP * (num_stages - 1):.1f} = {ratios[-1]:.3g} "
            f"of the positions at stage {num_stages}: give ρ above {STEP * (num_stages - 1):.1f}, "
            "or one ratio for each stage"
        )
    return ratios
