"""DynamicViT: a vision transformer that drops patch tokens on its way (Fig. 2 of the paper).

Two paths through the same weights. The masked path (training) keeps every token in memory and
hides the dropped ones from attention, so that decisions are differentiable; the pruned path
(inference) really removes them. For the same decisions both give the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.adapters import adapter_for
from dynamicvit.decisions import Sampler, gather_patches, gumbel_sampler, to_image, top_k
from dynamicvit.errors import InputError
from dynamicvit.prediction import KEEP, PredictionModule
from dynamicvit.schedule import Schedule
from dynamicvit.tokens import Tokens


@dataclass(frozen=True)
class MaskedOutput:
    """What the masked path gives, and the losses take.

    Attributes:
        logits: ``(B, classes)``.
        features: the final tokens after the final norm, with the last stage's decision.
        decisions: for each stage ``(B, N)``, 1 where the patch is still kept, 0 where it has been
            dropped there or before; differentiable in the prediction modules.
        grid: rows and columns of patches; N is their product.
    """

    logits: Tensor
    features: Tokens
    decisions: tuple[Tensor, ...]
    grid: tuple[int, int]


@dataclass(frozen=True)
class PrunedOutput:
    """What the pruned path gives when asked for more than logits.

    Attributes:
        logits: ``(B, classes)``.
        survived: for each stage ``(B, N)`` bool, which original patches were kept, in image order.
        keep_scores: for each stage ``(B, N)``, log-probability of keeping each patch that entered
            the stage, ``-inf`` for those already gone. Empty when the decisions were given.
        grid: rows and columns of patches; N is their product.
    """

    logits: Tensor
    survived: tuple[Tensor, ...]
    keep_scores: tuple[Tensor, ...]
    grid: tuple[int, int]


class DynamicViT(nn.Module):
    """A vision transformer with prediction modules that drop patch tokens in stages.

    In ``eval()`` calling the model gives logits ``(B, classes)`` through the pruned path; in
    ``train()`` it gives a :class:`MaskedOutput`. Each path can be called by name in either mode.

    Args:
        backbone: a supported vision transformer. It is used as it is and not changed: calling it
            directly still gives its dense output.
        schedule: where and how much to drop.
        predictors: one module for each stage, called like :class:`PredictionModule`; by default
            fresh prediction modules.

    Attributes:
        sampler: how training draws decisions, :func:`~dynamicvit.decisions.gumbel_sampler` unless
            set to another :data:`~dynamicvit.decisions.Sampler`.

    Raises:
        UnsupportedBackboneError: if no adapter covers the backbone.
        InputError: if the schedule does not fit its depth.
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
        self._schedule = Schedule.for_depth(self.depth, schedule.keep_ratios, schedule.stages)
        if predictors is None:
            width = self._adapter.width(backbone)
            predictors = [PredictionModule(width) for _ in schedule.stages]
        if len(predictors) != len(schedule.stages):
            raise InputError(f"{len(schedule.stages)} stages, but {len(predictors)} predictors")
        self.predictors = nn.ModuleList(predictors)
        self.sampler: Sampler = gumbel_sampler

    # ---------------------------------------------------------------- budget

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self._adapter.blocks(self.backbone))

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
        self._schedule = Schedule.for_depth(self.depth, keep_ratio, self._schedule.stages)

    # ---------------------------------------------------------------- the two paths

    def forward(self, images: Tensor) -> Tensor | MaskedOutput:
        """Logits ``(B, classes)`` in ``eval()``, a :class:`MaskedOutput` in ``train()``.

        Args:
            images: ``(B, channels, height, width)``, normalised as the backbone wants it.
        """
        if self.training:
            return self.forward_masked(images)
        return self.forward_head(self._prune(images)[0])

    def forward_features(self, images: Tensor) -> Tokens:
        """The final tokens after the final norm: kept ones only in ``eval()``, with decisions in
        ``train()``.
        """
        return self._mask(images)[0] if self.training else self._prune(images)[0]

    def forward_head(self, features: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool the kept tokens and classify: ``(B, classes)``, or ``(B, C)`` before the classifier.

        Args:
            features: what :meth:`forward_features` gave; pooling needs its decision.
            pre_logits: stop before the classifier.
        """
        return self._adapter.head(self.backbone, features, pre_logits)

    def forward_masked(
        self, images: Tensor, decisions: Sequence[Tensor] | None = None
    ) -> MaskedOutput:
        """The masked path: dropped tokens stay in memory, but no other token sees them.

        Args:
            images: ``(B, channels, height, width)``.
            decisions: for each stage ``(B, N)`` with 0 or 1, in place of the model's own draw.
        """
        features, taken, grid = self._mask(images, decisions)
        return MaskedOutput(self.forward_head(features), features, taken, grid)

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
            features, survived, scores, grid = self._prune(images)
            return PrunedOutput(self.forward_head(features), survived, scores, grid)
        self._check_decisions(images, decisions)
        survived = tuple(accumulate((drawn > 0.5 for drawn in decisions), torch.logical_and))
        groups: Sequence[Tensor] = (
            [torch.arange(len(images), device=images.device)]
            if all((kept.sum(1) == kept[0].sum()).all() for kept in survived)
            else torch.arange(len(images), device=images.device).split(1)
        )
        logits = [
            self.forward_head(self._prune_given(images[rows], [kept[rows] for kept in survived]))
            for rows in groups
        ]
        return PrunedOutput(torch.cat(logits), survived, (), self._grid(images))

    def forward_dense(self, images: Tensor) -> tuple[Tensor, Tokens]:
        """The backbone's own dense output, as a teacher gives it: logits and final tokens."""
        tokens, position, _ = self._embed(images)
        tokens = self._finish(self._run(tokens, position, 0, self.depth))
        return self.forward_head(tokens), tokens

    # ---------------------------------------------------------------- inside

    def _mask(
        self, images: Tensor, decisions: Sequence[Tensor] | None = None
    ) -> tuple[Tokens, tuple[Tensor, ...], tuple[int, int]]:
        tokens, position, grid = self._embed(images)
        if decisions is not None:
            self._check_decisions(images, decisions)
        taken = []
        block = 0
        budgets = self._schedule.kept(tokens.num_patches)
        for stage, budget in enumerate(budgets):
            tokens = self._run(tokens, position, block, self._schedule.stages[stage])
            block = self._schedule.stages[stage]
            before = tokens.decision
            if before is None:
                before = tokens.x.new_ones(tokens.patches.shape[:2], dtype=torch.float32)
            if decisions is None:
                log_probs = self.predictors[stage](tokens.patches, tokens.decision)
                drawn = self.sampler(log_probs, before, budget)
            else:
                drawn = decisions[stage].to(before.dtype)
            tokens = Tokens(tokens.x, tokens.num_prefix, tokens.index, drawn * before)
            taken.append(tokens.decision)
        tokens = self._run(tokens, position, block, self.depth)
        return self._finish(tokens), tuple(taken), grid

    def _prune(
        self, images: Tensor
    ) -> tuple[Tokens, tuple[Tensor, ...], tuple[Tensor, ...], tuple[int, int]]:
        tokens, position, grid = self._embed(images)
        num_patches = tokens.num_patches
        survived, scores = [], []
        block = 0
        for stage, budget in enumerate(self._schedule.kept(num_patches)):
            tokens = self._run(tokens, position, block, self._schedule.stages[stage])
            block = self._schedule.stages[stage]
            score = self.predictors[stage](tokens.patches)[..., KEEP]
            scores.append(to_image(score, tokens.index, num_patches, fill=float("-inf")))
            if budget < tokens.num_patches:
                tokens = gather_patches(tokens, top_k(score, budget))
            survived.append(_survivors(tokens, num_patches))
        tokens = self._run(tokens, position, block, self.depth)
        return self._finish(tokens), tuple(survived), tuple(scores), grid

    def _prune_given(self, images: Tensor, survived: Sequence[Tensor]) -> Tokens:
        """The pruned path for given cumulative decisions of equal size in every image."""
        tokens, position, _ = self._embed(images)
        block = 0
        for stage, kept in enumerate(survived):
            tokens = self._run(tokens, position, block, self._schedule.stages[stage])
            block = self._schedule.stages[stage]
            held = kept if tokens.index is None else kept.gather(1, tokens.index)
            position_of_kept = held.nonzero()[:, 1].reshape(len(held), -1)
            tokens = gather_patches(tokens, position_of_kept)
        return self._finish(self._run(tokens, position, block, self.depth))

    def _embed(self, images: Tensor) -> tuple[Tokens, Tensor | None, tuple[int, int]]:
        grid = self._grid(images)
        tokens, position = self._adapter.embed(self.backbone, images)
        return tokens, position, grid

    def _run(self, tokens: Tokens, position: Tensor | None, start: int, stop: int) -> Tokens:
        for depth in range(start, stop):
            tokens = tokens.with_x(self._adapter.run_block(self.backbone, depth, tokens, position))
        return tokens

    def _finish(self, tokens: Tokens) -> Tokens:
        return tokens.with_x(self._adapter.finish(self.backbone, tokens.x))

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """Check the batch; rows and columns of its patches."""
        channels = self.backbone.in_chans
        if images.ndim != 4 or images.shape[1] != channels:
            raise InputError(
                f"images must be (batch, {channels}, height, width), got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise InputError(f"images must be floating point and normalised, got {images.dtype}")
        return self._adapter.grid_size(self.backbone, images.shape[2], images.shape[3])

    def _check_decisions(self, images: Tensor, decisions: Sequence[Tensor]) -> None:
        rows, columns = self._grid(images)
        shape = (len(images), rows * columns)
        if len(decisions) != len(self._schedule.stages) or any(d.shape != shape for d in decisions):
            raise InputError(
                f"decisions must be {len(self._schedule.stages)} tensors of shape {shape}, "
                f"got {[tuple(d.shape) for d in decisions]}"
            )

    # ---------------------------------------------------------------- timm citizenship

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the backbone's weights and input."""
        return getattr(self.backbone, "pretrained_cfg", {})

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name for :attr:`pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self.backbone.num_classes

    @property
    def num_features(self) -> int:
        """C, the width of the features before the classifier."""
        return self.backbone.num_features

    @property
    def num_prefix_tokens(self) -> int:
        """P, the tokens that are never dropped."""
        return self.backbone.num_prefix_tokens

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.backbone.in_chans

    def get_classifier(self) -> nn.Module:
        """The backbone's classifier."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the backbone a fresh classifier; with another pool, if it can have it.

        Raises:
            UnsupportedBackboneError: for a pool that leaves tokens unpooled.
        """
        self.backbone.reset_classifier(num_classes, global_pool)
        adapter_for(self.backbone)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade computation for memory in training: blocks are run again in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)


def sparsify(
    model: nn.Module,
    keep_ratio: float | Sequence[float] = 0.7,
    stages: Sequence[int] | None = None,
) -> DynamicViT:
    """Turn a vision transformer into a :class:`DynamicViT`.

    The prediction modules are fresh: fine-tune the result, or load its weights.

    Args:
        model: a supported vision transformer; used as it is, not copied.
        keep_ratio: ρ, from which the stages keep ρ, ρ², ρ³, ... of the original patches; or one
            ratio for each stage.
        stages: indices of the blocks before which tokens are dropped; by default at 1/4, 2/4 and
            3/4 of the depth.

    Raises:
        UnsupportedBackboneError: naming the class that is not supported, and the families.
        InputError: for a ratio or stage that can't be.
    """
    depth = len(adapter_for(model).blocks(model))
    return DynamicViT(model, Schedule.for_depth(depth, keep_ratio, stages))


def _survivors(tokens: Tokens, num_patches: int) -> Tensor:
    """``(B, N)`` bool: which original patches the tokens still hold."""
    ones = torch.ones(tokens.patches.shape[:2], dtype=torch.bool, device=tokens.x.device)
    if tokens.index is None:
        return ones
    return torch.zeros(
        tokens.x.shape[0], num_patches, dtype=torch.bool, device=tokens.x.device
    ).scatter(1, tokens.index, ones)
