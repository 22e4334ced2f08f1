"""DynamicViT: a vision transformer that drops patch tokens on its way (Fig. 2 of the paper).

Two paths through the same weights. The masked path (training) keeps every token in memory and
hides the dropped ones from attention, so that decisions are differentiable; the pruned path
(inference) really removes them. For the same decisions both give the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.backbones import adapter_for
from dynamicvit.core.decisions import (
    Sampler,
    groups_of,
    gumbel_sampler,
    kept_patches,
    survivors,
    to_image,
)
from dynamicvit.core.hub import HubMixin
from dynamicvit.core.method import Draw, Masking, Reduction, reduction_of
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.core.timm_surface import TimmModelMixin
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens

#: How far a given decision may be from 0 or 1: straight-through estimators leave a rounding error.
_DECISION_ERROR = 1e-3


@dataclass(frozen=True)
class Stem:
    """The tokens before the first stage, where none has been dropped yet.

    A dense teacher with the same weights up to here can go on from the same stem.

    Attributes:
        tokens: all N patch tokens.
        position: what the backbone's blocks need to know of places, or ``None``.
        grid: rows and columns of patches; N is their product.
        depth: how many blocks have run.
    """

    tokens: Tokens
    position: Tensor | None
    grid: tuple[int, int]
    depth: int


@dataclass(frozen=True)
class MaskedOutput:
    """What the masked path gives, and the losses take.

    Attributes:
        logits: ``(B, classes)``.
        features: the final tokens after the final norm, with the last stage's decision.
        decisions: for each stage ``(B, N)``, 1 where the patch is still kept, 0 where it has been
            dropped there or before; differentiable in the prediction modules.
        log_odds: for each stage ``(B, N)``, log-odds of keeping each patch that entered the stage,
            ``-inf`` for those dropped before; what the modules say, however like others tokens are.
            Empty when the decisions were given, or none are made.
        grid: rows and columns of patches; N is their product.
        pooled: ``(B, C)``, the features that the classifier reads.
        loss_logits: ``(B, classes)``, what classification and distillation look at. The same as
            ``logits``, but for LV-ViT: the class token's alone, as the released code trains it.
        patch_logits: ``(B, M, classes)`` of LV-ViT's second classifier for every held patch token,
            which the token loss then looks at; ``None`` for other families.
        places: for each of ``log_odds`` ``(B, N)``, the patch that had the place of the token which
            each patch was part of when it entered; ``None`` where each was a token itself.
    """

    logits: Tensor
    features: Tokens
    decisions: tuple[Tensor, ...]
    log_odds: tuple[Tensor, ...]
    grid: tuple[int, int]
    pooled: Tensor
    loss_logits: Tensor
    patch_logits: Tensor | None = None
    places: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class DenseOutput:
    """What the dense network teaches.

    Attributes:
        logits: ``(B, classes)``.
        features: the final tokens after the final norm.
        pooled: ``(B, C)``, as in :class:`MaskedOutput`.
        loss_logits: ``(B, classes)``, as in :class:`MaskedOutput`.
        patch_logits: ``(B, N, classes)`` or ``None``, as in :class:`MaskedOutput`.
        importance: for each stage ``(B, N)``, how much the answer hangs on each patch from there
            on, where :func:`~dynamicvit.core.teacher.weigh_patches` was asked; else ``None``.
    """

    logits: Tensor
    features: Tokens
    pooled: Tensor
    loss_logits: Tensor
    patch_logits: Tensor | None = None
    importance: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class PrunedOutput:
    """What the pruned path gives when asked for more than logits.

    Attributes:
        logits: ``(B, classes)``.
        kept: for each stage ``(B, N)`` bool, which original patches were kept, in image order.
        keep_scores: for each stage ``(B, N)``, log-probability of keeping each patch that entered
            the stage, ``-inf`` for those already gone; where dropped tokens merge, with how like
            others they are (:func:`~dynamicvit.core.merging.discounted`). Empty when the decisions were
            given, or none are made.
        grid: rows and columns of patches; N is their product.
        groups: for each stage ``(B, N)``, the position among the patch tokens left of the one that
            each original patch is part of, -1 for none. Empty when the decisions were given.
        kept_index: for each stage ``(B, K)``, which original patches the patch tokens left have the
            places of, in the tokens' order, which ascends. Empty when the decisions were given.
    """

    logits: Tensor
    kept: tuple[Tensor, ...]
    keep_scores: tuple[Tensor, ...]
    grid: tuple[int, int]
    groups: tuple[Tensor, ...] = ()
    kept_index: tuple[Tensor, ...] = ()


class _Report(NamedTuple):
    """What the stages did, one entry for each; see :class:`PrunedOutput`."""

    kept: list[Tensor]
    keep_scores: list[Tensor]
    groups: list[Tensor]
    kept_index: list[Tensor]


class DynamicViT(nn.Module, TimmModelMixin, HubMixin):
    """A vision transformer with prediction modules that drop patch tokens in stages.

    In ``eval()`` calling the model gives logits ``(B, classes)`` through the pruned path; in
    ``train()`` it gives a :class:`MaskedOutput`. Each path can be called by name in either mode.
    The backbone's batch norms keep their statistics in either mode (:meth:`train`).

    Args:
        backbone: a supported vision transformer. It is used as it is and not changed: calling it
            directly still gives its dense output.
        schedule: where and how much to drop.
        predictors: one module for each stage, called like :class:`PredictionModule`, or a
            :class:`~dynamicvit.core.method.Reduction`; by default fresh prediction modules.

    Raises:
        UnsupportedBackboneError: if no adapter covers the backbone.
        InputError: if the schedule does not fit its depth, or a reduction not its stage.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schedule: Schedule,
        predictors: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self._adapter = adapter_for(backbone)
        self.backbone = backbone
        self._schedule = Schedule.for_depth(
            self.depth, schedule.keep_ratios, schedule.stages, schedule.policy
        )
        if predictors is None:
            width = self._adapter.width(backbone)
            predictors = [PredictionModule(width) for _ in schedule.stages]
        if len(predictors) != len(schedule.stages):
            raise InputError(f"{len(schedule.stages)} stages, but {len(predictors)} predictors")
        self.predictors = nn.ModuleList(predictors)
        self._check_reductions()
        self._freeze_statistics()

    # ---------------------------------------------------------------- budget

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The backbone's transformer blocks, in order."""
        return self._adapter.blocks(self.backbone)

    @property
    def schedule(self) -> Schedule:
        """Where and how much is dropped."""
        return self._schedule

    @property
    def keep_ratio(self) -> float | None:
        """ρ; ``None`` when the stages' ratios are not ρ, ρ², ρ³, ...

        Set it to change the budget of the same model: a number for ρ, a sequence for one ratio per
        stage.
        """
        return self._schedule.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, keep_ratio: float | Sequence[float]) -> None:
        now = self._schedule
        self._schedule = Schedule.for_depth(self.depth, keep_ratio, now.stages, now.policy)

    @property
    def policy(self) -> Policy:
        """What becomes of dropped tokens. Set it before training: who should stay depends on it."""
        return self._schedule.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._schedule = replace(self._schedule, policy=policy)

    # ---------------------------------------------------------------- the mode

    def train(self, mode: bool = True) -> DynamicViT:
        """Training or inference; the statistics of batch norms stay the pretrained ones.

        The released code lets LV-ViT's stem collect new ones. With frozen ones teacher and student
        see the same stem, no image depends on its batch, and training sees what inference does.

        Args:
            mode: whether to train.
        """
        super().train(mode)
        self._freeze_statistics()
        return self

    def _freeze_statistics(self) -> None:
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    # ---------------------------------------------------------------- the two paths

    def forward(self, images: Tensor) -> Tensor | MaskedOutput:
        """Logits ``(B, classes)`` in ``eval()``, a :class:`MaskedOutput` in ``train()``.

        Args:
            images: ``(B, channels, height, width)``, normalized as the backbone wants it.
        """
        if self.training:
            return self.forward_masked(images)
        return self._prune(self.stem(images))

    def forward_features(self, images: Tensor) -> Tokens:
        """The final tokens after the final norm.

        In ``eval()`` only the kept ones, in ``train()`` with the decision that pooling needs.
        """
        stem = self.stem(images)
        if self.training:
            return self._mask(stem)[0]
        tokens, block = self._reduce(stem)
        return self._finish(self._run(tokens, stem.position, block, self.depth))

    def forward_head(self, features: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool the kept tokens and classify: ``(B, classes)``, or ``(B, C)`` before the classifier.

        Args:
            features: what :meth:`forward_features` gave; pooling needs its decision.
            pre_logits: stop before the classifier.
        """
        return self._adapter.head(self.backbone, features, pre_logits)

    def stem(self, images: Tensor, depth: int | None = None) -> Stem:
        """Embed the images and run the first blocks, where nothing has been dropped yet.

        Args:
            images: ``(B, channels, height, width)``.
            depth: how many blocks; by default those before the first stage, or where there is none
                before the last block.
        """
        if depth is None:
            depth = (*self._schedule.stages, self.depth - 1)[0]
        grid = self._grid(images)
        tokens, position = self._adapter.embed(self.backbone, images)
        return Stem(self._run(tokens, position, 0, depth), position, grid, depth)

    def forward_masked(
        self,
        images: Tensor | Stem,
        decisions: Sequence[Tensor] | None = None,
        *,
        sampler: Sampler = gumbel_sampler,
        masking: Masking = "full",
    ) -> MaskedOutput:
        """The masked path: no token sees a dropped one, though it may stay in memory.

        Args:
            images: ``(B, channels, height, width)``, or their stem.
            decisions: for each stage ``(B, N)`` with 0 or 1, in place of the model's own draw.
            sampler: draws the decisions; see :data:`~dynamicvit.core.decisions.Sampler`.
            masking: when a dropped token leaves memory. ``"full"``: never, as in the paper.
                ``"lagged"``: one stage after the one that dropped it, from which on nothing can
                bring it back. ``"compact"``: at once, as in the pruned path. Outputs are the same,
                training is faster. "lagged" keeps the gradients too with a sampler in which dropped
                tokens don't compete; "compact" cuts the decisions' gradient: the prediction modules
                then learn from the guidance loss only. ``"zeroed"`` is what the paper compares
                with: dropped tokens stay and are seen, as zeros; the masked path then differs from
                the pruned one, and the gradient is cut too
                (:data:`~dynamicvit.core.method.NO_GRADIENT`).
        """
        stem = images if isinstance(images, Stem) else self.stem(images)
        features, taken, scores, places = self._mask(stem, decisions, sampler, masking)
        logits, pooled, loss_logits, patch_logits = self._adapter.answers(self.backbone, features)
        return MaskedOutput(
            logits, features, taken, scores, stem.grid, pooled, loss_logits, patch_logits, places
        )

    def forward_dense(self, images: Tensor | Stem) -> DenseOutput:
        """The backbone's own dense output.

        Args:
            images: ``(B, channels, height, width)``, or a stem of this or of another model with
                the same weights up to there.
        """
        stem = images if isinstance(images, Stem) else self.stem(images, depth=0)
        tokens = self._finish(self._run(stem.tokens, stem.position, stem.depth, self.depth))
        logits, pooled, loss_logits, patch_logits = self._adapter.answers(self.backbone, tokens)
        return DenseOutput(logits, tokens, pooled, loss_logits, patch_logits)

    def forward_pruned(
        self, images: Tensor, decisions: Sequence[Tensor] | None = None
    ) -> PrunedOutput:
        """The pruned path, with a report of which patches survived.

        Args:
            images: ``(B, channels, height, width)``.
            decisions: for each stage ``(B, N)`` with 0 or 1, in place of the model's own choice;
                a patch dropped before stays dropped. Images may keep different numbers of patches:
                they are then run one by one.
        """
        if decisions is None:
            stem = self.stem(images)
            report = _Report([], [], [], [])
            logits = self._prune(stem, report)
            survived, scores, groups, kept = map(tuple, report)
            return PrunedOutput(logits, survived, scores, stem.grid, groups, kept)
        grid = self._grid(images)
        self._check_decisions(len(images), grid, decisions)
        survived = tuple(accumulate((drawn > 0.5 for drawn in decisions), torch.logical_and))
        groups: Sequence[Tensor] = (
            [torch.arange(len(images), device=images.device)]
            if all((kept.sum(1) == kept[0].sum()).all() for kept in survived)
            else torch.arange(len(images), device=images.device).split(1)
        )
        logits = [
            self._prune_given(images[rows], [kept[rows] for kept in survived]) for rows in groups
        ]
        return PrunedOutput(torch.cat(logits), survived, (), grid)

    # ---------------------------------------------------------------- inside

    def _mask(
        self,
        stem: Stem,
        decisions: Sequence[Tensor] | None = None,
        sampler: Sampler = gumbel_sampler,
        masking: Masking = "full",
    ) -> tuple[Tokens, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Final tokens under the last decision; each stage's decisions, log-odds and places."""
        if masking not in get_args(Masking):
            raise InputError(f"masking is one of {get_args(Masking)}, got {masking!r}")
        zeroed = masking == "zeroed"
        tokens, block, num_patches = stem.tokens, stem.depth, stem.tokens.num_patches
        if decisions is not None:
            self._check_decisions(len(tokens.x), stem.grid, decisions)
        taken, scores, places = [], [], []
        for stage, budget in enumerate(self._schedule.kept(num_patches)):
            tokens = self._run(tokens, stem.position, block, self._schedule.stages[stage], zeroed)
            block = self._schedule.stages[stage]
            given = None if decisions is None else decisions[stage]
            draw = Draw(sampler, masking, given)
            reduction = self._reduction(stage)
            masked = reduction.mask(tokens, budget, stem.grid, draw)
            tokens = masked.tokens
            taken.append(masked.decision)
            if masked.log_odds is not None:
                scores.append(masked.log_odds)
                places.append(masked.places)
        tokens = self._run(tokens, stem.position, block, self.depth, zeroed)
        return self._finish(tokens), tuple(taken), tuple(scores), tuple(places)

    def _prune(self, stem: Stem, report: _Report | None = None) -> Tensor:
        """Logits; what each stage did is added to the report."""
        tokens, block = self._reduce(stem, report)
        return self._answer(tokens, stem.position, block)

    def _answer(self, tokens: Tokens, position: Tensor | None, block: int) -> Tensor:
        """Logits after the blocks that are left, of the last one only what the head reads."""
        tokens = self._run(tokens, position, block, self.depth - 1)
        tokens = self._adapter.run_last_block(self.backbone, tokens, position)
        return self.forward_head(self._finish(tokens))

    def _reduce(self, stem: Stem, report: _Report | None = None) -> tuple[Tokens, int]:
        """The tokens after the last stage, and the block that comes next."""
        tokens, block, num_patches = stem.tokens, stem.depth, stem.tokens.num_patches
        for stage, budget in enumerate(self._schedule.kept(num_patches)):
            tokens = self._run(tokens, stem.position, block, self._schedule.stages[stage])
            block, index = self._schedule.stages[stage], tokens.index
            reduction = self._reduction(stage)
            tokens, odds = reduction.prune(tokens, budget, stem.grid)
            if report is None:
                continue
            report.kept.append(survivors(tokens, num_patches))
            report.groups.append(groups_of(tokens, num_patches))
            report.kept_index.append(kept_patches(tokens))
            if odds is not None:
                score = F.logsigmoid(odds)
                report.keep_scores.append(to_image(score, index, num_patches, fill=float("-inf")))
        return tokens, block

    def _prune_given(self, images: Tensor, survived: Sequence[Tensor]) -> Tensor:
        """Logits for given cumulative decisions of equal size in every image."""
        stem = self.stem(images)
        tokens, block = stem.tokens, stem.depth
        for stage, kept in enumerate(survived):
            tokens = self._run(tokens, stem.position, block, self._schedule.stages[stage])
            block = self._schedule.stages[stage]
            held = kept if tokens.index is None else kept.gather(1, tokens.index)
            position = held.nonzero()[:, 1].reshape(len(held), -1)
            tokens = self._reduction(stage).prune_to(tokens, position, stem.grid)
        return self._answer(tokens, stem.position, block)

    def _reduction(self, stage: int) -> Reduction:
        return reduction_of(self.predictors[stage], self._schedule.policy)

    def _run(
        self, tokens: Tokens, position: Tensor | None, start: int, stop: int, zeroed: bool = False
    ) -> Tokens:
        """The tokens after some blocks, with what the last one's attention worked on."""
        for depth in range(start, stop):
            entered = self._zeroed(tokens) if zeroed else tokens
            x, heads = self._adapter.run_block(self.backbone, depth, entered, position)
            tokens = tokens.with_x(x, heads if depth == stop - 1 else None)
        return tokens

    def _zeroed(self, tokens: Tokens) -> Tokens:
        """The tokens with zeros for the dropped ones, which attention then sees."""
        decision = tokens.key_decision()
        if decision is None:
            return tokens
        return replace(tokens, x=tokens.x * decision[..., None].to(tokens.x.dtype), decision=None)

    def _finish(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(self._adapter.finish(self.backbone, tokens.x))

    def _check_reductions(self) -> None:
        for stage, block in enumerate(self._schedule.stages):
            reduction, name = self._reduction(stage), type(self.predictors[stage]).__name__
            if reduction.looks_back and block == 0:
                raise InputError(f"{name} looks at the block before, but stage 0 has none")
            if reduction.needs_class_token and not self._adapter.has_class_token(self.backbone):
                raise InputError(f"{name} needs a class token, which this backbone has not")

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """Check the batch; rows and columns of its patches."""
        channels = self.in_chans
        if images.ndim != 4 or images.shape[1] != channels:
            raise InputError(
                f"images must be (batch, {channels}, height, width), got {tuple(images.shape)}"
            )
        if images.shape[0] == 0:
            raise InputError(f"images must be at least one, got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise InputError(f"images must be floating point and normalized, got {images.dtype}")
        weights = next(self.backbone.parameters()).dtype
        if images.dtype != weights and not torch.is_autocast_enabled(images.device.type):
            raise InputError(f"images must be {weights} like the weights, got {images.dtype}")
        return self._adapter.grid_size(self.backbone, images.shape[2], images.shape[3])

    def _check_decisions(
        self, batch: int, grid: tuple[int, int], decisions: Sequence[Tensor]
    ) -> None:
        shape = (batch, grid[0] * grid[1])
        if len(decisions) != len(self._schedule.stages) or any(d.shape != shape for d in decisions):
            raise InputError(
                f"decisions must be {len(self._schedule.stages)} tensors of shape {shape}, "
                f"got {[tuple(d.shape) for d in decisions]}"
            )
        if torch.compiler.is_compiling():  # looking at values would break the graph
            return
        for decision in decisions:
            values = decision.detach().float()
            wrong = ~(torch.minimum(values.abs(), (values - 1).abs()) <= _DECISION_ERROR)
            if wrong.any():
                raise InputError(f"decisions must be 0 or 1, got {values[wrong][0].item():.4g}")
