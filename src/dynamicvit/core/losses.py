"""The losses of the paper (Section 3.3, Eq. 12-16), each part by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor

from dynamicvit.core.outputs import DenseOutput, MaskedOutput
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens

T = TypeVar("T")

#: From logits ``(B, classes)`` of student and teacher, or ``(B, classes, h, w)``, to a scalar.
Distillation = Callable[[Tensor, Tensor], Tensor]

#: Keeps a share of nothing finite; any importance that ranks patches is far larger.
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts; the defaults are the paper's for DeiT-S and LV-ViT.

    Attributes:
        classification: cross-entropy with the labels; images without a label add nothing to it.
        distillation: KL divergence of the logits from the teacher's.
        token: distance of the kept tokens from the teacher's.
        feature: distance of the pooled features from the teacher's. Not in the paper, so zero by
            default; see :func:`feature_loss`.
        ratio: squared distance of the kept fraction from the schedule.
        guidance: how far the ranking of the tokens is from their importance to the dense network.
            Not in the paper, so zero by default; see :func:`guidance_loss`.
    """

    classification: float = 1.0
    distillation: float = 0.5
    token: float = 0.5
    feature: float = 0.0
    ratio: float = 2.0
    guidance: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not weight >= 0:
                raise InputError(f"the {name} loss weight can't be negative, got {weight}")


@dataclass(frozen=True)
class Losses:
    """Each part unweighted, and their weighted sum; scalars.

    A part whose weight is zero is not computed and reads zero.
    """

    total: Tensor
    classification: Tensor
    distillation: Tensor
    token: Tensor
    feature: Tensor
    ratio: Tensor
    guidance: Tensor


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's class probabilities from the teacher's (Eq. 14).

    Args:
        logits: ``(B, classes)``, or ``(B, classes, h, w)`` whose mean is over the places too.
        teacher_logits: likewise.
        temperature: T, by which both are divided: above 1 the unlikely classes weigh more. The
            divergence is multiplied by T², for its gradients shrink by that (Hinton et al.,
            arXiv 1503.02531, Section 2); the paper has 1.
    """
    soft, taught = (each.float().movedim(1, -1) / temperature for each in (logits, teacher_logits))
    return temperature**2 * divergence(soft, taught).mean()


def hard_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher holds likeliest (arXiv 2012.12877, Eq. 3).

    That is how DeiT learns from a convolutional network.

    Args:
        logits: ``(B, classes)``, or ``(B, classes, h, w)``.
        teacher_logits: likewise. Of ones that are not finite there is no likeliest: that gives NaN.
    """
    loss = F.cross_entropy(logits.float(), teacher_logits.argmax(dim=1))
    return loss.masked_fill(~teacher_logits.isfinite().all(), float("nan"))


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL divergence of each row of class probabilities: ``(..., classes)`` to ``(...)``."""
    return F.kl_div(
        logits.float().log_softmax(dim=-1),
        teacher_logits.float().log_softmax(dim=-1),
        log_target=True,
        reduction="none",
    ).sum(dim=-1)


def dynamicvit_loss(
    output: MaskedOutput,
    keep_ratios: tuple[float, ...],
    *,
    labels: Tensor | None = None,
    teacher: DenseOutput | None = None,
    teacher_logits: Tensor | None = None,
    distillation: Distillation = distillation_loss,
    label_smoothing: float = 0.0,
    weights: LossWeights | None = None,
) -> Losses:
    """The training loss (Eq. 16): classification, distillation, tokens and ratio.

    Args:
        output: what the masked path gave.
        keep_ratios: the share of patches that each stage should keep.
        labels: as :func:`classification_loss` takes them.
        teacher: what the dense network gave for the same images.
        teacher_logits: ``(B, classes)`` of another teacher, which distillation then looks at.
        distillation: the loss of the logits, of :data:`Distillation`.
        label_smoothing: of labels that are class indices.
        weights: of the parts. A weight of zero leaves a part out, and its input is not needed.

    Raises:
        InputError: if a part has a weight but its input is missing.
    """
    weights = LossWeights() if weights is None else weights
    zero = output.logits.new_zeros((), dtype=torch.float32)
    classification = distilled = token = feature = ratio = guidance = zero
    if weights.classification:
        labels = _needed(labels, "labels", "classification")
        classification = classification_loss(output.loss_logits, labels, label_smoothing)
    if weights.distillation:
        if teacher_logits is None:
            teacher_logits = _needed(teacher, "teacher", "distillation").loss_logits
        distilled = distillation(output.loss_logits, teacher_logits)
    if weights.token:
        token = token_loss(output, _needed(teacher, "teacher", "token"))
    if weights.feature:
        feature = feature_loss(output.pooled, _needed(teacher, "teacher", "feature").pooled)
    if weights.ratio:
        ratio = ratio_loss(output.decisions, keep_ratios)
    if weights.guidance:
        importance = _needed(teacher, "teacher", "guidance").importance
        importance = _needed(importance, "teacher.importance", "guidance")
        guidance = guidance_loss(output.keep_scores, importance, output.places)
    total = (
        weights.classification * classification
        + weights.distillation * distilled
        + weights.token * token
        + weights.feature * feature
        + weights.ratio * ratio
        + weights.guidance * guidance
    )
    return Losses(total, classification, distilled, token, feature, ratio, guidance)


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (Eq. 12), averaged over all images; those without a label count as zero.

    So an image weighs the same whatever batch it lies in, and a batch may hold no label at all. Of
    a map the same holds for each pixel.

    Args:
        logits: ``(B, classes)``; or a map ``(B, classes, h, w)``, of patches as a rule.
        labels: ``(B,)`` class indices, negative for images without a label; or ``(B, classes)``
            probabilities (of timm's mixup), zero throughout for those; or of a map ``(B, H, W)``
            indices of the pixels, to whose size the logits are interpolated.
        label_smoothing: applies to indices; probabilities have theirs already.
    """
    if labels.ndim == 2:
        return SoftTargetCrossEntropy()(logits.float(), labels)
    if logits.ndim == 4:
        logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear")
    known = labels >= 0
    loss = F.cross_entropy(
        logits.float(), labels * known, label_smoothing=label_smoothing, reduction="none"
    )
    return (loss * known).mean()


def token_loss(output: MaskedOutput, teacher: DenseOutput) -> Tensor:
    """How far the kept tokens are from the teacher's (Eq. 13); zero if none is kept.

    The mean over all kept tokens of the batch: of the squared distance of the tokens,
    averaged over their channels; for a family that classifies every patch (LV-ViT), of the KL
    divergence of their class probabilities, as released. A token made of several patches is
    compared with the mean of the teacher's for them.

    Args:
        output: the student's.
        teacher: the dense network's, for the same images.
    """
    features = output.features
    if output.patch_logits is None or teacher.patch_logits is None:
        expected = _held(teacher.features.patches, features)
        distance = (features.patches.float() - expected.float()).square().mean(dim=-1)
    else:
        expected = _held(teacher.patch_logits, features)
        distance = divergence(output.patch_logits, expected)
    # This loss should not change which tokens are kept: no gradient to the decision.
    decision = features.decision
    kept = torch.ones_like(distance) if decision is None else decision.detach()
    return (distance * kept).sum() / kept.sum().clamp(min=1.0)


def feature_loss(pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
    """Mean squared distance of what the classifier reads from what the teacher's reads.

    Distillation sees it through the classifier only, the token loss not at all where a class token
    is pooled: on few images it is the shortest way to an answer like the dense one. Not in the
    paper.

    Args:
        pooled: ``(B, C)``.
        teacher_pooled: likewise.
    """
    return (pooled.float() - teacher_pooled.float()).square().mean()


def _held(values: Tensor, tokens: Tokens) -> Tensor:
    """What ``(B, N, C)`` says of each held token: ``(B, M, C)``.

    Of a token that is one patch its row; of one made of several the mean of theirs.
    """
    index, groups = tokens.index, tokens.groups
    if groups is not None:
        members = F.one_hot(groups + 1, tokens.num_patches + 1)[..., 1:].to(values.dtype)
        total = members.sum(dim=1).clamp(min=1)[..., None]
        return members.transpose(1, 2) @ values / total
    if index is None:
        return values
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def ratio_loss(decisions: tuple[Tensor, ...], keep_ratios: tuple[float, ...]) -> Tensor:
    """Squared distance of each image's kept fraction from the schedule (Eq. 15).

    Mean over images, then over stages.
    """
    parts = [
        (decision.float().mean(dim=1) - ratio).square().mean()
        for decision, ratio in zip(decisions, keep_ratios, strict=True)
    ]
    return torch.stack(parts).mean()


def guidance_loss(
    keep_scores: tuple[Tensor, ...],
    importance: tuple[Tensor, ...],
    places: tuple[Tensor | None, ...] = (),
) -> Tensor:
    """KL divergence of each stage's ranking from the patches' importance to the dense network.

    Among the tokens that enter a stage, the softmax of their log-odds of being kept should be
    their share of the importance there. The straight-through gradient of the decisions says the
    same, one draw at a time, and needs many images before the ranking is better than chance. Not
    in the paper.

    Args:
        keep_scores: for each stage ``(B, N)`` log-odds, ``-inf`` where a token was dropped before.
        importance: for each stage ``(B, N)``, not negative; of
            :func:`~dynamicvit.core.teacher.weigh_patches`. An image whose patches were not weighed
            (zero throughout) counts as zero in the mean.
        places: for each stage ``(B, N)``, the patch that has the place of the token which each
            patch is part of: a token is as important as its patches together. ``None`` for a stage
            where each patch is a token, and nothing where that is so for all.
    """
    parts = []
    places = places or (None,) * len(keep_scores)
    for odds, weight, place in zip(keep_scores, importance, places, strict=True):
        entered = odds > float("-inf")
        target = weight.float()
        if place is not None:
            target = torch.zeros_like(target).scatter_add(1, place, target)
        target = target * entered
        target = target / target.sum(dim=1, keepdim=True).clamp(min=_TINY)
        # A softmax over no token at all is NaN: such an image has nothing to rank.
        empty = ~entered.any(dim=1, keepdim=True)
        share = odds.float().masked_fill(empty, 0.0).log_softmax(dim=1).masked_fill(~entered, 0.0)
        parts.append(F.kl_div(share, target, reduction="batchmean"))
    return torch.stack(parts).mean()


def _needed(value: T | None, name: str, part: str) -> T:
    if value is None:
        raise InputError(f"the {part} loss has a weight, so {name} must be given")
    return value
