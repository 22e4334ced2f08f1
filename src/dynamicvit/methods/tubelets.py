"""Choices that only clips have: fewer frames, and as many tubelets of each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.core.method import Choice, Draw, Masked, Method
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens


class BeforeBlocks(Choice):
    """Drops tubelets once, before the first block, by what the clip shows alone."""

    for_clips = True
    works_untrained = True

    @classmethod
    def for_stages(cls, bound: Backbone, stages: Sequence[int]) -> list[Method]:
        """One, before the first block.

        Raises:
            InputError: for other stages.
        """
        if tuple(stages) not in ((), (0,)):
            raise InputError(
                f"{cls.name} drops tubelets before the first block: its one stage is 0, "
                f"got {tuple(stages)}"
            )
        return super().for_stages(bound, stages)

    @classmethod
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """One for each number of tubelets, from all down to one; before block 0."""
        total = prod(bound.grid(*bound.image_size))
        return [Schedule((0,), (kept / total,)) for kept in range(total, 0, -1)]

    @classmethod
    def schedule(
        cls,
        bound: Backbone,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        policy: Policy | None = None,
    ) -> Schedule:
        return super().schedule(bound, keep_ratio, (0,) if stages is None else stages, policy)


@register_method("fewer-frames", does="of clips: keeps all tubelets of evenly spaced times alone")
class FewerFrames(BeforeBlocks):
    """What sampling fewer frames would show, each with its own position in time. A control.

    Whole times are kept, the middle of as many equal segments, as uniform sampling takes them. So
    a clip of T times has T budgets; the embedding of the others is computed and counted too.
    """

    compares_images = False
    takes_any_schedule = False

    @classmethod
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """One for each number of times."""
        times = bound.grid(*bound.image_size)[0]
        return [Schedule((0,), (kept / times,)) for kept in range(times, 0, -1)]

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """None.

        Raises:
            InputError: always: the number of frames decides, not a score.
        """
        raise InputError("fewer-frames scores no tubelets: it keeps those of evenly spaced times")

    def prune(
        self, tokens: Tokens, count: int, policy: Policy = "removed"
    ) -> tuple[Tokens, Tensor | None]:
        """The tubelets of as many times as ``count`` fills."""
        return self.prune_to(tokens, self._position(tokens, count), policy), None

    def mask(self, tokens: Tokens, count: int, policy: Policy, draw: Draw) -> Masked:
        """The same times, whatever the sampler."""
        if draw.given is None:
            dropped = tokens.x.new_zeros(tokens.patches.shape[:2])
            kept = dropped.scatter(1, self._position(tokens, count), 1.0)
            draw = replace(draw, given=kept)
        return super().mask(tokens, count, policy, draw)

    @staticmethod
    def _position(tokens: Tokens, count: int) -> Tensor:
        """``(B, K)`` of the kept ones."""
        times, space = tokens.grid[0], prod(tokens.grid[1:])
        number, device = max(1, round(count / space)), tokens.x.device
        middle = [int((segment + 0.5) * times / number) for segment in range(number)]
        first = torch.tensor(middle, device=device)[:, None] * space
        kept = (first + torch.arange(space, device=device)).flatten()
        return kept.expand(tokens.x.shape[0], -1)


@register_method(
    "per-frame",
    does="of clips: dynamicvit, but as many tubelets of each time",
)
class PerFrame(PredictionModule):
    """DynamicViT's prediction modules with a budget for each time in place of one for the clip.

    Tubelets are ranked among those of their own time: the k best of a clip are k / T of each, one
    more of the first times where T does not divide k. In training the rank, as log-odds, has the
    gradient of the keep score.
    """

    for_clips = True
    compares_images = False

    def ranked(
        self, tokens: Tokens, keep_scores: Tensor, alike: Tensor | None, kept: Tensor | None = None
    ) -> Tensor:
        scores = super().ranked(tokens, keep_scores, alike, kept)
        held = scores.detach()
        held = held if kept is None else held.masked_fill(~kept, float("-inf"))
        frames = tokens.to_grid(held, fill=float("-inf")).unflatten(1, (tokens.grid[0], -1))
        place = frames.argsort(dim=2, descending=True).argsort(dim=2).flatten(1)
        place = place if tokens.index is None else place.gather(1, tokens.index)
        share = 1 - (place.to(scores.dtype) + 0.5) / frames.shape[2]
        return share.logit() + scores - scores.detach()
