"""Reductions: what a stage does with the tokens that come to it, in either path.

DynamicViT's is :class:`Scored`: a module says how much each patch token is worth, and the best stay
(Section 3.2 and 3.4). What the paper is compared with are others (:mod:`dynamicvit.methods`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dynamicvit.backbones.layer_macs import linear_macs
from dynamicvit.core.decisions import (
    Sampler,
    gather_alive,
    gather_patches,
    log_odds,
    log_probs_of,
    places_of,
    to_image,
    top_k,
    unmask,
)
from dynamicvit.core.merging import discounted, join, likeness, most_alike
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Policy
from dynamicvit.errors import InputError
from dynamicvit.layers.plain import is_unhooked
from dynamicvit.layers.tokens import Tokens

Masking = Literal["full", "lagged", "compact", "zeroed"]

#: Where the decisions pass no gradient on. Tokens that have left have none to give; zeros have one,
#: but the norm of a token of zeros multiplies it by 1/√ε in each block that it enters.
NO_GRADIENT: tuple[Masking, ...] = ("compact", "zeroed")

Grid = tuple[int, int]
"""Rows and columns of the image's N patches."""


@dataclass(frozen=True)
class Draw:
    """How the masked path comes to its decisions at a stage.

    Attributes:
        sampler: draws them from the keep probabilities.
        leave: when a dropped token leaves memory.
        given: ``(B, N)``, 0 or 1, in place of a draw; or ``None``.
    """

    sampler: Sampler
    masking: Masking
    given: Tensor | None = None


class Masked(NamedTuple):
    """What a stage of the masked path gives.

    Attributes:
        tokens: those that go on, under their decision.
        decision: ``(B, N)``, 1 where a patch is still kept, 0 where it is not.
        log_odds: ``(B, N)`` of keeping each patch that entered, ``-inf`` for the others; ``None``
            where nothing was scored.
        places: ``(B, N)``, the place of the token that each patch was part of when it entered;
            ``None`` where every token was one patch.
    """

    tokens: Tokens
    decision: Tensor
    log_odds: Tensor | None
    places: Tensor | None = None


class Crowd(NamedTuple):
    """The tokens that enter a stage, as far as MACs depend on them.

    Attributes:
        num_patches: M.
        num_prefix: P.
        width: C.
        num_heads: of the attention in the block before; 0 where nobody looks back at it.
        head_width: D, likewise.
    """

    num_patches: int
    num_prefix: int
    width: int
    num_heads: int = 0
    head_width: int = 0


class Reduction(ABC):
    """What a stage does with the tokens that come to it."""

    #: Whether it looks at what the attention of the block before worked on (``Tokens.heads``).
    looks_back: ClassVar[bool] = False
    #: Whether the first token must be a class token.
    needs_class_token: ClassVar[bool] = False
    #: How many prefix tokens it adds.
    adds: int = 0

    @abstractmethod
    def prune(self, tokens: Tokens, budget: int, grid: Grid) -> tuple[Tokens, Tensor | None]:
        """The pruned path: fewer tokens.

        Args:
            tokens: those that come to the stage, without decision.
            budget: how many patch tokens should go on.
            grid: rows and columns of the image's patches.

        Returns:
            The tokens that go on; and ``(B, M)`` log-odds of keeping those that came, ``None``
            where nothing was scored.
        """

    @abstractmethod
    def prune_to(self, tokens: Tokens, position: Tensor, grid: Grid) -> Tokens:
        """The pruned path under a decision that was made elsewhere.

        Args:
            tokens: M patch tokens.
            position: ``(B, K)`` of those that stay, ascending.
            grid: rows and columns of the image's patches.

        Raises:
            InputError: if this way does not choose tokens.
        """

    @abstractmethod
    def mask(self, tokens: Tokens, budget: int, grid: Grid, draw: Draw) -> Masked:
        """The masked path: the same for the same decisions, differentiable in them.

        Args:
            tokens: those that come to the stage, under their decision.
            budget: how many patch tokens should go on.
            grid: rows and columns of the image's patches.
            draw: how decisions are made.
        """

    def macs(self, crowd: Crowd) -> int:
        """MACs of one image at this stage, in closed form."""
        del crowd
        return 0


class Choice(Reduction):
    """Some tokens stay; the others are gone, leave a summary behind, or merge into those that stay.

    The law holds for each of them: for the same decisions both paths go on with the same tokens.
    """

    #: Whether each token that leaves becomes part of the one that is most like it among those that
    #: stay (:mod:`~dynamicvit.core.merging`). What a token is worth then depends on that likeness too.
    merges: bool = False

    @abstractmethod
    def log_probs(self, tokens: Tokens, grid: Grid) -> Tensor:
        """``(B, M, 2)``: log-probabilities of keeping and of dropping each patch token."""

    def rest(self, tokens: Tokens, gone: Tensor, log_probs: Tensor | None) -> Tensor | None:
        """What those that leave at this stage leave behind.

        Args:
            tokens: those that came to the stage.
            gone: ``(B, M)``, 1 for a token that leaves here; differentiable.
            log_probs: of :meth:`log_probs` for these tokens, where they were asked for.

        Returns:
            ``(B, adds, C)`` further prefix tokens, or ``None`` for nothing.
        """
        del tokens, gone, log_probs
        return None

    def odds(self, tokens: Tokens, grid: Grid) -> Tensor:
        """``(B, M)``: log-odds of keeping each patch token, whose order says who stays."""
        return log_odds(self.log_probs(tokens, grid))

    def prune(self, tokens: Tokens, budget: int, grid: Grid) -> tuple[Tokens, Tensor | None]:
        # Only a summary of those that leave may ask for more than the order.
        log_probs = self.log_probs(tokens, grid) if self.adds else None
        odds = self.odds(tokens, grid) if log_probs is None else log_odds(log_probs)
        alike = self._alike(tokens)
        if alike is not None:
            odds = discounted(odds, alike)
        if budget >= tokens.num_patches and not self.adds:
            return tokens, odds
        position = top_k(odds, min(budget, tokens.num_patches))
        return self._keep(tokens, position, grid, log_probs, alike), odds

    def prune_to(self, tokens: Tokens, position: Tensor, grid: Grid) -> Tokens:
        alike = self._alike(tokens)
        return self._keep(tokens, position, grid, None, alike)

    def _alike(self, tokens: Tokens) -> Tensor | None:
        """How like each other tokens are, where there are any and that matters."""
        return likeness(tokens) if self.merges and tokens.num_patches else None

    def _keep(
        self,
        tokens: Tokens,
        position: Tensor,
        grid: Grid,
        log_probs: Tensor | None,
        alike: Tensor | None,
    ) -> Tokens:
        if not self.adds and alike is None:
            return gather_patches(tokens, position)
        gone = tokens.x.new_ones(tokens.patches.shape[:2], dtype=torch.float32)
        gone = gone.scatter(1, position, 0.0)
        left = tokens
        if alike is not None:
            left = join(tokens, gone, most_alike(alike, gone < 0.5), grid[0] * grid[1])
        return _with_rest(gather_patches(left, position), self.rest(tokens, gone, log_probs))

    def mask(self, tokens: Tokens, budget: int, grid: Grid, draw: Draw) -> Masked:
        before = tokens.decision
        if before is None:
            before = tokens.x.new_ones(tokens.patches.shape[:2], dtype=torch.float32)
        num_patches, log_probs, odds = grid[0] * grid[1], None, None
        alike = self._alike(tokens)
        if draw.given is None:
            alive = before.detach() > 0.5
            log_probs = self.log_probs(tokens, grid)
            odds = log_odds(log_probs).masked_fill(~alive, float("-inf"))
            odds = to_image(odds, tokens.index, num_patches, fill=float("-inf"))
            worth = log_probs
            if alike is not None:
                worth = log_probs_of(discounted(log_odds(log_probs), alike, alive))
            drawn = draw.sampler(worth, before, budget)
        else:
            drawn = draw.given.to(before.dtype)
            # Without the rounding error, which the pruned path does not see; gradients stay.
            drawn = drawn + (drawn.round() - drawn).detach()
            drawn = drawn if tokens.index is None else drawn.gather(1, tokens.index)
        decision = drawn * before
        if draw.masking in NO_GRADIENT:
            decision = decision.detach()
        left = replace(tokens, decision=decision)
        if alike is not None:
            into = most_alike(alike, decision > 0.5)
            left = join(left, before - decision, into, num_patches)
        if draw.masking == "lagged":
            left = gather_alive(left, before)
        elif draw.masking == "compact":
            left = unmask(gather_alive(left, decision))
        left = _with_rest(left, self.rest(tokens, before - decision, log_probs))
        decision = to_image(decision, tokens.index, num_patches)
        return Masked(left, decision, odds, places_of(tokens))


class Scored(Choice):
    """DynamicViT's: a module scores the tokens, of each image the best stay.

    Args:
        module: called like :class:`~dynamicvit.core.prediction.PredictionModule`.
        merges: see :class:`Choice`.
    """

    def __init__(self, module: nn.Module, merges: bool = False) -> None:
        self.module = module
        self.merges = merges

    def log_probs(self, tokens: Tokens, grid: Grid) -> Tensor:
        """What the module says."""
        del grid
        return self.module(tokens.patches, tokens.decision)

    def odds(self, tokens: Tokens, grid: Grid) -> Tensor:
        """What the module says; of the paper's without the softmax, which changes no order."""
        if type(self.module) is PredictionModule and is_unhooked(self.module):
            return self.module.odds(tokens.patches, tokens.decision)
        return super().odds(tokens, grid)

    def macs(self, crowd: Crowd) -> int:
        """Of the module, and of comparing each patch token with each."""
        compared = self.merges * crowd.width * crowd.num_patches**2
        return module_macs(self.module, crowd.num_patches) + compared


class Combination(Reduction):
    """Several tokens become one, by a rule that is the same in training and at inference.

    There are no decisions: what is reported in their place is which patches give the tokens that
    go on their places (``Tokens.index``); which patches those are made of is in ``Tokens.groups``.
    """

    @abstractmethod
    def combine(self, tokens: Tokens, budget: int, grid: Grid) -> Tokens:
        """Fewer tokens; arguments as of :meth:`Reduction.prune`."""

    def prune(self, tokens: Tokens, budget: int, grid: Grid) -> tuple[Tokens, Tensor | None]:
        return self.combine(tokens, budget, grid), None

    def prune_to(self, tokens: Tokens, position: Tensor, grid: Grid) -> Tokens:
        raise InputError(f"{type(self).__name__} combines tokens: it takes no decisions")

    def mask(self, tokens: Tokens, budget: int, grid: Grid, draw: Draw) -> Masked:
        if draw.given is not None:
            raise InputError(f"{type(self).__name__} combines tokens: it takes no decisions")
        left = self.combine(tokens, budget, grid)
        held = left.x.new_ones(left.patches.shape[:2], dtype=torch.float32)
        return Masked(left, to_image(held, left.index, grid[0] * grid[1]), None)


def module_macs(module: nn.Module, num_patches: int) -> int:
    """MACs of a module that scores the patch tokens of one image.

    Args:
        module: the paper's, or another, whose linear layers are taken to run for each token.
        num_patches: M.
    """
    if isinstance(module, PredictionModule):
        return module.macs(num_patches)
    return linear_macs(module) * num_patches


def reduction_of(module: nn.Module, policy: Policy) -> Reduction:
    """What a stage does whose module this is: a reduction itself, or a module that scores.

    Args:
        module: of the stage.
        policy: what becomes of the tokens that are dropped by score.
    """
    return module if isinstance(module, Reduction) else Scored(module, policy == "merged")


def _with_rest(tokens: Tokens, rest: Tensor | None) -> Tokens:
    """Further prefix tokens, behind those that are there."""
    if rest is None:
        return tokens
    added, prefix = rest.shape[1], tokens.num_prefix
    x = torch.cat([tokens.x[:, :prefix], rest.to(tokens.x.dtype), tokens.patches], dim=1)
    return replace(tokens, x=x, num_prefix=prefix + added, added=tokens.added + added, heads=None)
