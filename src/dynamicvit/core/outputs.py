"""What the paths give, beside logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dynamicvit.layers.tokens import Grid, Tokens
from dynamicvit.utils.renamed import Renamed


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
            order, which ascends. Empty when the decisions were given.
        full_map: ``(B, *grid, C)``, as in :class:`MaskedOutput`.
    """

    logits: Tensor
    kept: tuple[Tensor, ...]
    keep_scores: tuple[Tensor, ...]
    grid: Grid
    groups: tuple[Tensor, ...] = ()
    kept_index: tuple[Tensor, ...] = ()
    full_map: Tensor | None = None

    survived = Renamed("kept; kept_index has what was kept, the patches by number")
