"""The way of the tokens: the masked path, the pruned path, and the one loop that both walk.

The masked path (training) hides dropped tokens from attention, so that decisions are
differentiable; the pruned path (inference) really removes them. For the same decisions both give
the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import get_args

import torch
from torch import Tensor, nn

from dynamicvit.backbones import Backbone
from dynamicvit.core.decisions import Sampler, check_decisions, gumbel_sampler
from dynamicvit.core.method import Draw, Masking
from dynamicvit.core.outputs import (
    DenseOutput,
    MaskedOutput,
    PrunedOutput,
    StageReport,
)
from dynamicvit.core.parts import by_count, in_order, joined, only_part, zeroed_in
from dynamicvit.core.per_image import PerImage
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import through_backbone
from dynamicvit.layers.tokens import Tokens, kept_count

#: What a path does at a stage: called with the stage's number, the tokens that come and how many
#: should go on; gives those that go on, in parts where images keep different numbers.
AtStage = Callable[[int, Tokens, int], Iterable[Tokens]]


class Paths:
    """How a :class:`~dynamicvit.DynamicViT` runs.

    Attributes:
        bound: the backbone with what its family says of it.
        predictors: the method of each stage.
        per_image: what gives each image a number of tokens of its own, or ``None``.
    """

    bound: Backbone
    _schedule: Schedule
    predictors: nn.ModuleList
    per_image: PerImage | None
    training: bool
    warns_untrained: bool

    @through_backbone
    def forward(self, images: Tensor | Tokens) -> Tensor | MaskedOutput:
        """Logits ``(B, classes)`` in ``eval()``, a :class:`MaskedOutput` in ``train()``.

        Args:
            images: ``(B, channels, height, width)``, or clips with frames after B; or tokens.
        """
        if self.training:
            return self.forward_masked(images)
        return self._answer(self._walk(self._first(images, False), self._prune, self._stop))

    @through_backbone
    def forward_masked(
        self,
        images: Tensor | Tokens,
        decisions: Sequence[Tensor] | None = None,
        *,
        sampler: Sampler = gumbel_sampler,
        masking: Masking = "full",
        full_map: bool = False,
    ) -> MaskedOutput:
        """The masked path: no token sees a dropped one, though it may stay in memory.

        Args:
            images: ``(B, channels, height, width)``, or what :meth:`first_blocks` gave for them.
            decisions: for each stage ``(B, N)`` with 0 or 1, in place of the model's own draw.
            sampler: how decisions are drawn.
            masking: when a dropped token leaves memory (:data:`~dynamicvit.core.method.Masking`).
            full_map: whether the output has one.
        """
        if masking not in get_args(Masking):
            raise InputError(f"masking is one of {get_args(Masking)}, got {masking!r}")
        tokens = self._first(images, full_map)
        given = [None] * len(self.predictors) if decisions is None else decisions
        if decisions is not None:
            check_decisions(decisions, len(self.predictors), (tokens.x.shape[0], tokens.grid_size))
        report = []

        def mask(stage: int, tokens: Tokens, count: int) -> list[Tokens]:
            draw = Draw(sampler, masking, given[stage])
            report.append(self.predictors[stage].mask(tokens, count, self._schedule.policy, draw))
            return [report[-1].tokens]

        walked = self._walk(tokens, mask, self._depth, zeroed=masking == "zeroed")
        features = self.bound.finish(*walked)
        full = features.full_map() if full_map else None
        return MaskedOutput.of(report, features, self.bound.answers(features), full)

    @through_backbone
    def forward_pruned(
        self,
        images: Tensor | Tokens,
        decisions: Sequence[Tensor] | None = None,
        *,
        full_map: bool = False,
    ) -> PrunedOutput:
        """The pruned path, with a report of which patches were kept.

        Args:
            images: ``(B, channels, height, width)``, or what :meth:`first_blocks` gave for them.
            decisions: for each stage ``(B, N)`` with 0 or 1, in place of the model's own choice;
                a patch dropped before stays dropped. Images may keep different numbers of patches.
            full_map: whether the output has one.
        """
        tokens = self._first(images, full_map)
        report = [StageReport() for _ in self.predictors]
        if decisions is not None:
            check_decisions(decisions, len(self.predictors), (tokens.x.shape[0], tokens.grid_size))
            made = (decision > 0.5 for decision in decisions)
            anew = self._again or self._schedule.policy == "cheap"
            given = tuple(made if anew else accumulate(made, torch.mul))

        def prune_to(stage: int, tokens: Tokens, _count: int) -> Iterator[Tokens]:
            kept = given[stage] if tokens.images is None else given[stage][tokens.images]
            kept = kept if tokens.index is None else kept.gather(1, tokens.index)
            for part, position in by_count(tokens, kept):
                yield self.predictors[stage].prune_to(part, position, self._schedule.policy)

        stop = self._depth if full_map else self._stop
        choose = partial(self._prune, report=report) if decisions is None else prune_to
        parts = self._walk(tokens, choose, stop)
        finished = [self.bound.finish(part) for part in parts] if full_map else None
        full = finished and in_order(parts, [part.full_map() for part in finished])
        if decisions is not None:
            return PrunedOutput(self._answer(parts), given, (), tokens.grid, full_map=full)
        return PrunedOutput.of(report, self._answer(parts), tokens.grid, full)

    @through_backbone
    def forward_dense(self, images: Tensor | Tokens) -> DenseOutput:
        """The backbone's own dense output.

        Args:
            images: a batch, or what :meth:`first_blocks` of a model with these weights gave for it.
        """
        tokens = images if isinstance(images, Tokens) else self._embed(images)
        [tokens] = self._run([tokens], self._depth)
        tokens = self.bound.finish(tokens)
        logits, pooled, loss_logits, patch_logits = self.bound.answers(tokens)
        return DenseOutput(logits, tokens, pooled, loss_logits, patch_logits)

    @through_backbone
    def forward_tokens(self, images: Tensor) -> Tokens:
        """The final tokens after the final norm: in ``eval()`` only the kept ones.

        In ``train()`` with the decision that pooling needs.

        Args:
            images: ``(B, channels, height, width)``.
        """
        if self.training:
            return self.forward_masked(images).features
        parts = self._walk(self.first_blocks(images), self._prune, self._depth)
        return self.bound.finish(only_part(parts))

    @through_backbone
    def first_blocks(self, images: Tensor) -> Tokens:
        """Embed the images and run the blocks before the first stage, where nothing is dropped.

        A dense teacher with the same weights up to there can go on from the same tokens.

        Args:
            images: ``(B, channels, height, width)``.
        """
        stop, tokens = (*self._schedule.stages, self._depth - 1)[0], self._embed(images)
        looks_back = len(self.predictors) > 0 and self.predictors[0].looks_back
        if len(self.predictors) and self.predictors[0].looks_at_motion:
            tokens = replace(tokens, motion=self.bound.motion(images))
        [tokens] = self._run([tokens], stop, keep_heads=looks_back)
        return tokens

    # ---------------------------------------------------------------- the one loop

    def _walk(
        self,
        tokens: Tokens,
        at_stage: AtStage,
        stop: int,
        zeroed: bool = False,
        note: Callable[[Tokens], None] | None = None,
    ) -> list[Tokens]:
        """The tokens after the stages and blocks before ``stop``; ``note`` sees each block's."""
        restored_at = self._schedule.restore_before
        restores = restored_at is not None and tokens.block <= restored_at <= stop
        again = self._again
        remembers = (restores or again) and tokens.dropped is None
        parts = [tokens.remembering() if remembers else tokens]
        schedule = zip(self._schedule.stages, self._schedule.keep_ratios, strict=True)
        for stage, (block, ratio) in enumerate(schedule):
            if block > stop:
                break
            looks_back = self.predictors[stage].looks_back
            parts = self._run(parts, block, looks_back, zeroed, note)
            count = kept_count(tokens.grid_size, ratio, self._schedule.policy)
            come = (part.restored().remembering() if again else part.remembered() for part in parts)
            parts = [left for part in come for left in at_stage(stage, part, count)]
            parts = parts if len(parts) == 1 else joined(parts)
        if restores:
            parts = self._run(parts, restored_at, False, zeroed, note)
            parts = joined(part.restored() for part in parts)
        return self._run(parts, stop, False, zeroed, note)

    def _run(
        self,
        parts: list[Tokens],
        stop: int,
        keep_heads: bool = False,
        zeroed: bool = False,
        note: Callable[[Tokens], None] | None = None,
    ) -> list[Tokens]:
        """The tokens after the blocks up to ``stop``; if asked, with the last one's heads."""
        for i in range(parts[0].block, stop):
            heads = keep_heads and i == stop - 1
            if zeroed:
                [part] = parts
                ran = self.bound.run(i, zeroed_in(part), heads)
                parts = [replace(ran, decision=part.decision)]
            elif len(parts) == 1 or heads:
                parts = [self.bound.run(i, part, heads) for part in parts]
            else:
                parts = self.bound.run_packed(i, parts)
            if note is not None:
                note(parts[0])
        return parts

    def _prune(
        self, stage: int, tokens: Tokens, count: int, report: list[StageReport] | None = None
    ) -> list[Tokens]:
        """The pruned path's stage; it is noted in its report."""
        if self.warns_untrained and count < tokens.num_patches:
            self._warn_if_untrained(tokens.x)
        method = self.predictors[stage]
        if self.per_image is None or tokens.x.is_meta:  # without values only the mean is known
            pruned, keep_scores = method.prune(tokens, count, self._schedule.policy)
            left = [pruned]
        else:
            left, keep_scores = self.per_image.prune(self._schedule, stage, method, tokens)
        if report is not None:
            report[stage].note(tokens, left, keep_scores)
        return left

    def _answer(self, parts: list[Tokens]) -> Tensor:
        """Logits of the pruned path; of the last block, if it has not run, what the head reads."""
        if parts[0].block == self._depth:
            done = parts
        elif len(parts) == 1:
            done = [self.bound.run_last(*parts)]
        else:
            done = self.bound.run_packed(self._depth - 1, parts)
        logits = [self.bound.head(self.bound.finish(part)) for part in done]
        return logits[0] if len(parts) == 1 else in_order(parts, logits)

    def _first(self, images: Tensor | Tokens, remember: bool) -> Tokens:
        tokens = images if isinstance(images, Tokens) else self.first_blocks(images)
        return tokens.remembering() if remember else tokens

    @property
    def _depth(self) -> int:
        return len(self.bound.blocks)

    @property
    def _again(self) -> bool:
        """Whether each stage chooses among all patches, those that wait too."""
        return self._schedule.policy == "bypassed" and self.method.reactivates

    @property
    def _stop(self) -> int:
        """Where inference goes on for the tokens that the head reads alone (:meth:`_answer`)."""
        at_the_end = self._schedule.restore_before == self._depth
        return self._depth if at_the_end and self.bound.reads is None else self._depth - 1

    def _embed(self, images: Tensor) -> Tokens:
        """All tokens of a batch that was checked."""
        bound, channels, shape = self.bound, self.bound.in_chans, tuple(images.shape)
        what, batch = ("images", "batch") if bound.frames is None else ("clips", "batch, frames")
        if len(shape) != 3 + len(batch.split()) or shape[-3] != channels:
            raise InputError(f"{what} must be ({batch}, {channels}, height, width), got {shape}")
        if images.shape[0] == 0:
            raise InputError(f"{what} must be at least one, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise InputError(f"{what} must be floating point and normalized, got {images.dtype}")
        weights = next(bound.module.parameters()).dtype
        if images.dtype != weights and not torch.is_autocast_enabled(images.device.type):
            raise InputError(f"{what} must be {weights} like the weights, got {images.dtype}")
        bound.grid(*images.shape[-2:], *images.shape[1:-3])  # refuses a size before it is embedded
        return bound.embed(images)
