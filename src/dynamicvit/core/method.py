"""Methods: what a stage does with the tokens that come to it, in either path.

DynamicViT's chooses by a learned module (:mod:`dynamicvit.core.prediction`); the others are in
:mod:`dynamicvit.methods`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dynamicvit.backbones import Backbone
from dynamicvit.core.decisions import Sampler, gumbel_sampler
from dynamicvit.core.merging import discounted, join, likeness, most_alike
from dynamicvit.core.schedule import Policy, Schedule, keep_ratio_among, nearest
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens, top_k

Masking = Literal["full", "lagged", "compact", "zeroed"]
"""When a dropped token leaves memory in the masked path.

``"full"``: never, as in the paper. ``"lagged"``: one stage after the one that dropped it, from
which on nothing can bring it back. ``"compact"``: at once, as in the pruned path. Outputs are the
same, training is faster. "lagged" keeps the gradients too with a sampler in which dropped tokens
don't compete (:func:`~dynamicvit.core.decisions.gumbel_top_k_sampler`); "compact" cuts the
decisions' gradient: prediction modules then learn from the guidance loss only. ``"zeroed"`` is what
the paper compares with: dropped tokens stay and are seen, only their features are set to zero; the
masked path then differs from the pruned one.
"""

#: Where decisions pass no gradient on. Tokens that have left have none to give; zeros have one,
#: but the norm of a token of zeros multiplies it by 1/√ε in each block that it enters.
NO_GRADIENT: tuple[Masking, ...] = ("compact", "zeroed")


@dataclass(frozen=True)
class Draw:
    """How the masked path comes to its decisions at a stage.

    Attributes:
        sampler: draws them from the keep scores.
        masking: when a dropped token leaves memory.
        given: ``(B, N)``, 0 or 1, in place of a draw; or ``None``.
    """

    sampler: Sampler = gumbel_sampler
    masking: Masking = "full"
    given: Tensor | None = None


class Masked(NamedTuple):
    """What a stage of the masked path gives.

    Attributes:
        tokens: those that go on, under their decision.
        decision: ``(B, N)``, 1 where a patch is still kept, 0 where it is not.
        keep_scores: ``(B, N)`` log-odds of keeping each patch that entered, ``-inf`` for the
            others; ``None`` where nothing was scored.
        places: ``(B, N)``, the place of the token that each patch was part of when it entered;
            ``None`` where every token was one patch.
    """

    tokens: Tokens
    decision: Tensor
    keep_scores: Tensor | None
    places: Tensor | None = None


class Method(nn.Module, ABC):
    """What happens to the tokens at a stage; a module for each stage, with weights or without.

    A method of one's own derives from :class:`Choice` or from
    :class:`~dynamicvit.core.combination.Combination`, and
    :func:`~dynamicvit.methods.register_method` gives it a name.
    """

    #: Its name in the registry, what it does in a few words, and where it is from.
    name: ClassVar[str] = ""
    does: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    #: What becomes of dropped tokens where nobody says otherwise.
    default_policy: ClassVar[Policy] = "removed"
    #: Whether it means anything without training.
    works_untrained: ClassVar[bool] = False
    #: Whether it looks at what the attention of the block before worked on (``Tokens.heads``).
    looks_back: bool = False
    #: Whether it is for clips alone, and whether it looks at what moves there (``Tokens.motion``).
    for_clips: ClassVar[bool] = False
    looks_at_motion: ClassVar[bool] = False
    #: Whether the first token must be a class token.
    needs_class_token: ClassVar[bool] = False
    #: Whether it can drop any number of tokens before any block.
    takes_any_schedule: ClassVar[bool] = True
    #: Whether its keep scores compare the tokens of different images.
    compares_images: ClassVar[bool] = False
    #: Whether dropped tokens become part of kept ones by a rule of its own, whatever the policy.
    merges: ClassVar[bool] = False
    #: Whether a stage scores bypassed tokens too, all N, and may take them up again.
    reactivates: ClassVar[bool] = False
    #: With a budget per image, the share of the way from the mean to what passes the threshold.
    #: All of the way, images with few such tokens lose more than others gain (docs/results.md).
    spread: ClassVar[float] = 0.5
    #: How many prefix tokens it adds.
    adds: int = 0

    @classmethod
    def for_stage(cls, bound: Backbone) -> Method:
        """A fresh module for one stage of a network."""
        del bound
        return cls()

    @classmethod
    def for_stages(cls, bound: Backbone, stages: Sequence[int]) -> list[Method]:
        """Fresh modules, one for each stage."""
        return [cls.for_stage(bound) for _ in stages]

    @classmethod
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """All schedules that it can have, where it does not drop ρ, ρ², ρ³, ... at a few stages.

        They have the same number of stages. A keep ratio or a budget then picks one.
        """
        del bound
        return ()

    @classmethod
    def schedule(
        cls,
        bound: Backbone,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        policy: Policy | None = None,
    ) -> Schedule:
        """What a keep ratio means to this method.

        DynamicViT's own schedule; or, of :meth:`schedules`, the one that holds as many tokens as
        that on average over the blocks.

        Args:
            bound: the network.
            keep_ratio: ρ, or one ratio for each stage.
            stages: block indices; by default the method's own, or at 1/4, 2/4 and 3/4 of the depth.
            policy: what becomes of dropped tokens; by default the method's own.

        Raises:
            InputError: as :meth:`~dynamicvit.Schedule.for_depth`.
        """
        policy = policy or cls.default_policy
        depth, all_of_them = len(bound.blocks), cls.schedules(bound)
        options = [own for own in all_of_them if stages is None or len(stages) == len(own.stages)]
        if not options or isinstance(keep_ratio, Sequence):
            return Schedule.for_depth(depth, keep_ratio, stages, policy)
        return replace(nearest(options, depth, keep_ratio), policy=policy)

    @classmethod
    def keep_ratio_of(cls, bound: Backbone, schedule: Schedule) -> float | None:
        """The number that :meth:`schedule` turns into this schedule, or ``None``."""
        options = cls.schedules(bound)
        if not options:
            return schedule.keep_ratio
        return keep_ratio_among(options, len(bound.blocks), schedule)

    @property
    def is_fresh(self) -> bool:
        """Whether it has weights of its own, and they are as initialized."""
        return False

    @abstractmethod
    def prune(
        self, tokens: Tokens, count: int, policy: Policy = "removed"
    ) -> tuple[Tokens, Tensor | None]:
        """The pruned path: fewer tokens.

        Args:
            tokens: those that come to the stage, without decision.
            count: how many patch tokens should go on.
            policy: what becomes of dropped tokens.

        Returns:
            The tokens that go on; and ``(B, M)`` log-odds of keeping those that came, ``None``
            where nothing was scored.
        """

    @abstractmethod
    def prune_to(self, tokens: Tokens, position: Tensor, policy: Policy = "removed") -> Tokens:
        """The pruned path under a decision that was made elsewhere.

        Args:
            tokens: M patch tokens.
            position: ``(B, K)`` of the kept ones, ascending.
            policy: what becomes of dropped tokens.

        Raises:
            InputError: if this method does not choose tokens.
        """

    @abstractmethod
    def mask(self, tokens: Tokens, count: int, policy: Policy, draw: Draw) -> Masked:
        """The masked path: the same for the same decisions, differentiable in them.

        Args:
            tokens: those that come to the stage, under their decision.
            count: how many patch tokens should go on.
            policy: what becomes of dropped tokens.
            draw: how decisions are made.
        """


class Choice(Method):
    """Some tokens are kept; the others are removed, merged, or leave a summary behind."""

    compares_images = True
    #: Whether :meth:`told` changes kept tokens.
    tells: ClassVar[bool] = False

    @abstractmethod
    def keep_scores(self, tokens: Tokens) -> Tensor:
        """``(B, M)``: log-odds of keeping each patch token; their order says who is kept."""

    def summary(self, tokens: Tokens, dropped: Tensor, keep_scores: Tensor | None) -> Tensor | None:
        """What dropped ones leave behind: ``(B, adds, C)`` prefix tokens, ``None`` for nothing.

        Args:
            tokens: those that came to the stage.
            dropped: ``(B, M)``, 1 for a token that is dropped here; differentiable.
            keep_scores: of these tokens, where they were asked for.
        """
        del tokens, dropped, keep_scores
        return None

    def alike(self, tokens: Tokens, policy: Policy) -> Tensor | None:
        """How like each other tokens are, where there are any and that matters."""
        merge = policy == "merged" or self.merges
        return likeness(tokens) if merge and tokens.num_patches else None

    def ranked(
        self, tokens: Tokens, keep_scores: Tensor, alike: Tensor | None, kept: Tensor | None = None
    ) -> Tensor:
        """``(B, M)`` by which tokens are ranked: discounted where the policy merges dropped ones.

        Args:
            tokens: those that come to the stage.
            keep_scores: of these tokens.
            alike: of :meth:`alike`.
            kept: ``(B, M)`` bool, which tokens there are; by default all.
        """
        del tokens
        by_policy = alike is not None and not self.merges
        return discounted(keep_scores, alike, kept) if by_policy else keep_scores

    def absorb(
        self,
        tokens: Tokens,
        dropped: Tensor,
        kept: Tensor,
        alike: Tensor,
        keep_scores: Tensor | None,
    ) -> Tokens:
        """The tokens after the dropped ones have become part of kept ones; all are still held.

        Args:
            tokens: those that came to the stage.
            dropped: ``(B, M)``, 1 for a token that is dropped here; differentiable.
            kept: ``(B, M)`` bool, those that go on.
            alike: of :meth:`alike`.
            keep_scores: of these tokens, where they were asked for.
        """
        del keep_scores
        return join(tokens, dropped, most_alike(alike, kept))

    def told(self, tokens: Tokens, kept: Tensor) -> Tokens:
        """The same tokens after those that go on, ``(B, M)`` bool, learned which others do not."""
        del kept
        return tokens

    def prune(
        self, tokens: Tokens, count: int, policy: Policy = "removed"
    ) -> tuple[Tokens, Tensor | None]:
        """The k best by keep score go on (Section 3.4)."""
        own, alike = self.keep_scores(tokens), self.alike(tokens, policy)
        scores = self.ranked(tokens, own, alike)
        if count >= tokens.num_patches and not self.adds:
            return tokens, scores
        position = top_k(scores, min(count, tokens.num_patches))
        return self._kept(tokens, position, own, alike), scores

    def prune_to(self, tokens: Tokens, position: Tensor, policy: Policy = "removed") -> Tokens:
        """Those at the given positions go on."""
        return self._kept(tokens, position, None, self.alike(tokens, policy))

    def _kept(
        self, tokens: Tokens, position: Tensor, keep_scores: Tensor | None, alike: Tensor | None
    ) -> Tokens:
        if not self.adds and alike is None and not self.tells:
            return tokens.keep(position)
        ones = tokens.x.new_ones(tokens.patches.shape[:2], dtype=torch.float32)
        dropped = ones.scatter(1, position, 0.0)
        kept, joined = dropped < 0.5, tokens
        if alike is not None:
            joined = self.absorb(tokens, dropped, kept, alike, keep_scores)
        left = self.told(joined, kept).keep(position)
        return left.with_summary(self.summary(tokens, dropped, keep_scores))

    def mask(self, tokens: Tokens, count: int, policy: Policy, draw: Draw) -> Masked:
        """Dropped tokens are hidden from attention (Section 3.4), which keeps shapes fixed."""
        before = tokens.decision
        if before is None:
            before = tokens.x.new_ones(tokens.patches.shape[:2], dtype=torch.float32)
        alike, own, reported = self.alike(tokens, policy), None, None
        if draw.given is None:
            kept = before.detach() > 0.5
            own = self.keep_scores(tokens)
            reported = tokens.to_grid(own.masked_fill(~kept, float("-inf")), fill=float("-inf"))
            drawn = draw.sampler(self.ranked(tokens, own, alike, kept), before, count)
        else:
            drawn = draw.given.to(before.dtype)
            # Without the rounding error, which the pruned path does not see; gradients stay.
            drawn = drawn + (drawn.round() - drawn).detach()
            drawn = drawn if tokens.index is None else drawn.gather(1, tokens.index)
        decision = drawn * before
        if draw.masking in NO_GRADIENT:
            decision = decision.detach()
        after = tokens
        if alike is not None:
            after = self.absorb(tokens, before - decision, decision > 0.5, alike, own)
        after = replace(self.told(after, decision > 0.5), decision=decision)
        if draw.masking == "lagged":
            after = after.compact(before)
        elif draw.masking == "compact":
            after = after.compact(decision).unmasked()
        after = after.with_summary(self.summary(tokens, before - decision, own))
        return Masked(after, tokens.to_grid(decision), reported, tokens.places())


class GivenDecisions(Choice):
    """Has no opinion: for decisions that are made elsewhere."""

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """None.

        Raises:
            InputError: always.
        """
        raise InputError("this model scores no tokens: give it decisions")
