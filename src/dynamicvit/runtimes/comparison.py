"""An exported file compared with its model, on images.

In float32 it must give the same logits and keep the same patches (:func:`check`); in int8 the share
of images and patches on which it does is counted (:class:`Reference`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.combination import Combination
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import TIE
from dynamicvit.runtimes.exported import ExportedModel

#: Largest difference of a logit in float32.
MAX_LOGIT_ERROR = 1e-3


class ExportMismatchError(RuntimeError):
    """An exported file does not do what its model does."""


@dataclass(frozen=True)
class Check:
    """How a float32 file compares with its model.

    Attributes:
        images: number of images.
        logit_error: largest difference of a logit, for the same kept patches.
        ties: number of images of which the file kept other patches whose scores tie.
    """

    images: int
    logit_error: float
    ties: int


@torch.inference_mode()
def check(model: DynamicViT, exported: ExportedModel, images: Tensor) -> Check:
    """Compare the logits and the kept patches.

    The file may keep other patches only if their scores tie. The model is then run on the patches
    that the file kept, so that the logits of every image are compared.

    Args:
        model: in ``eval()``, on the CPU, in float32.
        exported: its file.
        images: ``(B, channels, height, width)``, normalized.

    Raises:
        ExportMismatchError: if they differ.
    """
    own, theirs = model.forward_pruned(images), exported.forward_pruned(images)
    differing = [image for image in range(len(images)) if _differ(own, theirs, image)]
    for image in differing:
        _check_tie(own, theirs, image)
    expected = own.logits.clone()
    for image in differing:
        decisions = [kept[image : image + 1].float() for kept in theirs.kept]
        given = model.forward_pruned(images[image : image + 1], decisions)
        expected[image] = given.logits[0]
    error = float((theirs.logits - expected).abs().max())
    if not error <= MAX_LOGIT_ERROR:  # also NaN
        raise ExportMismatchError(
            f"logits differ from PyTorch's by {error:.2g}, more than {MAX_LOGIT_ERROR:g}"
        )
    return Check(len(images), error, len(differing))


def _differ(own: PrunedOutput, theirs: PrunedOutput, image: int) -> bool:
    pairs = zip(own.kept, theirs.kept, strict=True)
    return any(not torch.equal(mine[image], other[image]) for mine, other in pairs)


def _check_tie(own: PrunedOutput, theirs: PrunedOutput, image: int) -> None:
    """Refuse other patches than the model's, unless their scores tie.

    Only the first stage that differs can be compared: after it the model sees other tokens.
    """
    # Nothing ties for methods without scores.
    keep_scores = own.keep_scores or tuple(kept.float() for kept in own.kept)
    pairs = zip(own.kept, theirs.kept, keep_scores, strict=True)
    for stage, (mine, other, scores) in enumerate(pairs, start=1):
        swapped = mine[image] != other[image]
        if not swapped.any():
            continue
        cut = scores[image][mine[image]].min()
        gap = float((scores[image][swapped] - cut).abs().max())
        same_number = int(other[image].sum()) == int(mine[image].sum())
        if same_number and gap <= TIE * max(1.0, 2 * abs(float(cut))):
            return
        raise ExportMismatchError(
            f"image {image + 1} keeps other patches than PyTorch does at stage {stage}: "
            f"{int((swapped & mine[image]).sum())} of {int(mine[image].sum())} differ, with keep "
            f"scores {gap:.2g} from the cut"
        )


@dataclass(frozen=True)
class Agreement:
    """How an int8 file compares with its model.

    Attributes:
        images: number of images.
        answers: share of them, or of their pixels, with the same highest logit.
        kept: for each stage, the share of the model's kept patches that the file kept too. Empty
            where tokens are combined: which of two gives its place says nothing of the answer.
        labeled: number of images with a label.
        top1: of the file on those; ``None`` without labels.
        model_top1: of the model on those.
        miou: of the file; ``None`` without masks.
        model_miou: of the model.
    """

    images: int
    answers: float
    kept: tuple[float, ...]
    labeled: int = 0
    top1: float | None = None
    model_top1: float | None = None
    miou: float | None = None
    model_miou: float | None = None

    @property
    def scores(self) -> tuple[str, float, float] | None:
        """What the labels measure, of the file and of the model; ``None`` without labels."""
        if self.top1 is not None and self.model_top1 is not None:
            return "top-1", self.top1, self.model_top1
        if self.miou is not None and self.model_miou is not None:
            return "mIoU", self.miou, self.model_miou
        return None

    @property
    def drop(self) -> float:
        """Points of top-1 or mIoU lost; without labels, the share of changed answers."""
        if self.scores is None:
            return 100.0 * (1.0 - self.answers)
        _, found, models = self.scores
        return 100.0 * (models - found)

    @property
    def least(self) -> float:
        """The lowest of the shares."""
        return min((self.answers, *self.kept))


class Reference:
    """A model's answers and kept patches on some images, to compare files with.

    Args:
        model: in ``eval()``.
        batches: read once for the model and once for each file.
    """

    def __init__(self, model: DynamicViT, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._own = [_run(model, batch.images) for batch in batches if len(batch)]
        self._chooses = not any(isinstance(each, Combination) for each in model.methods)

    @torch.inference_mode()
    def agreement(self, exported: PrunedClassifier) -> Agreement:
        """The agreement of a file with the model.

        Raises:
            InputError: without a readable image.
        """
        images = labeled = right = own_right = 0
        same = 0.0
        kept: Tensor | float = 0.0
        batches = (batch for batch in self._batches if len(batch))
        for batch, (answers, own_kept) in zip(batches, self._own, strict=True):
            given, their_kept = _run(exported, batch.images)
            images += len(batch)
            same += float((given == answers).reshape(len(batch), -1).double().mean(dim=1).sum())
            has_label = batch.labels != UNLABELED
            if has_label.any():  # maps have none here
                labeled += int(has_label.sum())
                right += int((given == batch.labels)[has_label].sum())
                own_right += int((answers == batch.labels)[has_label].sum())
            both = [(a & b).sum(1) / a.sum(1) for a, b in zip(own_kept, their_kept, strict=True)]
            if both and self._chooses:
                kept = kept + torch.stack([share.sum() for share in both])
        if not images:
            raise InputError("no readable image to compare the int8 file on")
        return Agreement(
            images=images,
            answers=same / images,
            kept=tuple((kept / images).tolist()) if isinstance(kept, Tensor) else (),
            labeled=labeled,
            top1=right / labeled if labeled else None,
            model_top1=own_right / labeled if labeled else None,
        )


@torch.inference_mode()
def _run(model: PrunedClassifier, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Answers ``(B,)`` or maps of them, and for each stage the kept patches, ``(B, N)`` bool."""
    output = model.forward_pruned(images)
    return output.logits.argmax(dim=1), output.kept
