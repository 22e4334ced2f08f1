"""What the paths give, beside logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from dynamicvit.core.parts import in_order
from dynamicvit.layers.tokens import Grid, Tokens
from dynamicvit.utils.renamed import Renamed

if TYPE_CHECKING:
    from dynamicvit.backbones.base import Answers
    from dynamicvit.core.method import Masked


@dataclass(frozen=True)
class MaskedOutput:
    """What the masked path gives, and the losses take.

    Attributes:
        logits: ``(B, classes)``.
        features: the final tokens after the final norm, with the last stage's decision.
        decisions: for each stage ``(B, N)``, 1 where the patch is still kept, 0 where it has been
            dropped there or before; differentiable in the prediction modules.
        keep_scores: for each stage ``(B, N)``, log-odds of keeping each patch that entered the
            stage, ``-inf`` for those dropped before; what the modules say, however like others
            tokens are. Empty when the decisions were given, or none are made.
        grid: patches along each axis of the input; N is their product.
        pooled: ``(B, C)``, the features that the classifier reads.
        loss_logits: ``(B, classes)``, what classification and distillation look at. The same as
            ``logits``, but for LV-ViT: the class token's alone, as the released code trains it.
        patch_logits: ``(B, M, classes)`` of LV-ViT's second classifier for every held patch token,
            which the token loss then looks at; ``None`` for other families.
        places: for each of ``keep_scores`` ``(B, N)``, the patch that had the place of the token
            which each patch was part of when it entered; ``None`` where each was a token itself.
        full_map: ``(B, *grid, C)``, every patch in its place after the final norm
            (:meth:`~dynamicvit.layers.tokens.Tokens.full_map`), where it was asked for.
    """

    logits: Tensor
    features: Tokens
    decisions: tuple[Tensor, ...]
    keep_scores: tuple[Tensor, ...]
    grid: Grid
    pooled: Tensor
    loss_logits: Tensor
    patch_logits: Tensor | None = None
    places: tuple[Tensor | None, ...] = ()
    full_map: Tensor | None = None

    @classmethod
    def of(
        cls, report: list[Masked], features: Tokens, answers: Answers, full_map: Tensor | None
    ) -> MaskedOutput:
        """From what the stages did, and what the network says."""
        scored = [stage for stage in report if stage.keep_scores is not None]
        return cls(
            answers.logits,
            features,
            decisions=tuple(stage.decision for stage in report),
            keep_scores=tuple(s.keep_scores for s in scored if s.keep_scores is not None),
            grid=features.grid,
            pooled=answers.pooled,
            loss_logits=answers.loss_logits,
            patch_logits=answers.patch_logits,
            places=tuple(stage.places for stage in scored),
            full_map=full_map,
        )

    log_odds = Renamed("keep_scores")


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
        kept: for each stage ``(B, N)`` bool, which patches of the grid were kept.
        keep_scores: for each stage ``(B, N)``, log-odds of keeping each patch that entered the
            stage, ``-inf`` for those dropped before; where dropped tokens merge, discounted by how
            like others they are (:func:`~dynamicvit.core.merging.discounted`). Empty when the
            decisions were given, or none are made.
        grid: patches along each axis of the input; N is their product.
        groups: for each stage ``(B, N)``, the position among the held patch tokens of the one that
            each patch is part of, -1 for none. Empty when the decisions were given.
        kept_index: for each stage ``(B, K)``, index of each kept patch in the grid, in the tokens'
            order, which ascends. Empty when the decisions were given, or images keep different
            numbers of patches.
        full_map: ``(B, *grid, C)``, as in :class:`MaskedOutput`.
    """

    logits: Tensor
    kept: tuple[Tensor, ...]
    keep_scores: tuple[Tensor, ...]
    grid: Grid
    groups: tuple[Tensor, ...] = ()
    kept_index: tuple[Tensor, ...] = ()
    full_map: Tensor | None = None

    @classmethod
    def of(
        cls, report: list[StageReport], logits: Tensor, grid: Grid, full_map: Tensor | None
    ) -> PrunedOutput:
        """From what the stages did by their own choice."""
        equal = all(len(stage.left) == 1 for stage in report)
        return cls(
            logits,
            kept=tuple(stage.kept() for stage in report),
            keep_scores=tuple(stage.scored() for stage in report if stage.keep_scores),
            grid=grid,
            groups=tuple(stage.groups() for stage in report),
            kept_index=tuple(stage.left[0].kept_index() for stage in report) if equal else (),
            full_map=full_map,
        )

    survived = Renamed("kept; kept_index has what was kept, the patches by number")


@dataclass
class StageReport:
    """What a stage of the pruned path did to the parts of a batch.

    Attributes:
        came: the parts that came to it.
        keep_scores: of each of them ``(B', N)``, if it scores tokens.
        left: the parts that went on.
    """

    came: list[Tokens] = field(default_factory=list)
    keep_scores: list[Tensor] = field(default_factory=list)
    left: list[Tokens] = field(default_factory=list)

    def note(self, came: Tokens, left: list[Tokens], keep_scores: Tensor | None) -> None:
        """Add what became of one part."""
        self.came.append(came)
        self.left += left
        if keep_scores is not None:
            self.keep_scores.append(came.to_grid(keep_scores, fill=float("-inf")))

    def kept(self) -> Tensor:
        """``(B, N)`` bool, as in :class:`PrunedOutput`."""
        return in_order(self.left, [part.kept() for part in self.left])

    def scored(self) -> Tensor:
        """``(B, N)`` keep scores, as in :class:`PrunedOutput`."""
        return in_order(self.came, self.keep_scores)

    def groups(self) -> Tensor:
        """``(B, N)``, as in :class:`PrunedOutput`."""
        return in_order(self.left, [part.membership() for part in self.left])
