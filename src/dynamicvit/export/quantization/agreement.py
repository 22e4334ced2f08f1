"""How often an int8 file answers and chooses as its model does in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """How a file compares with its model.

    Attributes:
        images: on how many images.
        answers: share of them with the same highest logit.
        kept: for each stage, the share of the patches kept by the model that the file kept too.
        labeled: how many of the images have labels.
        top1: share of those that the file is right on; ``None`` where there are none.
        model_top1: the same of the model.
    """

    images: int
    answers: float
    kept: tuple[float, ...]
    labeled: int = 0
    top1: float | None = None
    model_top1: float | None = None

    @property
    def drop(self) -> float:
        """Points of top-1 lost; without labels, the most that may have been lost.

        An answer that did not change is as right as before.
        """
        if self.top1 is None or self.model_top1 is None:
            return 100.0 * (1.0 - self.answers)
        return 100.0 * (self.model_top1 - self.top1)

    @property
    def least(self) -> float:
        """The lowest of the shares that agree."""
        return min((self.answers, *self.kept))


class Reference:
    """What a model says and keeps on some images, to compare files with.

    Args:
        model: in ``eval()``.
        batches: what is gone through once for the model, and once for each file.
    """

    def __init__(self, model: PrunedClassifier, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self._own = [_said(model, batch.images) for batch in batches if len(batch)]

    @torch.inference_mode()
    def agreement(self, exported: PrunedClassifier) -> Agreement:
        """Of a file.

        Raises:
            InputError: if no image could be read.
        """
        images = same = labeled = right = own_right = 0
        kept: Tensor | float = 0.0
        batches = (batch for batch in self._batches if len(batch))
        for batch, (answers, survived) in zip(batches, self._own, strict=True):
            given, theirs = _said(exported, batch.images)
            images += len(batch)
            same += int((given == answers).sum())
            has_label = batch.labels != UNLABELED
            labeled += int(has_label.sum())
            right += int((given == batch.labels)[has_label].sum())
            own_right += int((answers == batch.labels)[has_label].sum())
            both = [(a & b).sum(1) / a.sum(1) for a, b in zip(survived, theirs, strict=True)]
            kept = kept + torch.stack([share.sum() for share in both]) if both else kept
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
def _said(model: PrunedClassifier, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Answers ``(B,)``, and for each stage ``(B, N)`` bool."""
    output = model.forward_pruned(images)
    return output.logits.argmax(dim=1), output.kept
