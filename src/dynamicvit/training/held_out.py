"""Images kept aside: how right the model is on them while it learns, and when it was best."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dynamicvit.data import Batch
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.utils.distributed import Processes

#: A run of more epochs evaluates after every other one, or after fewer.
MAX_EVALUATIONS = 50

Measure = Literal["top1", "miou", "agreement"]


@dataclass(frozen=True)
class HeldOut:
    """Images that are not trained on.

    Attributes:
        batches: the images in a fixed order; with ``set_share`` where several processes train.
        dense: the network whose answers count as right where images have no labels; None where
            they have.
        num_images: how many there are; 0 if unknown.
    """

    batches: Iterable[Batch]
    dense: nn.Module | None = None
    num_images: int = 0

    @property
    def measure(self) -> Measure:
        """What the score is: top-1, or agreement with the dense network."""
        return "top1" if self.dense is None else "agreement"

    def evaluate(
        self, model: nn.Module, processes: Processes, precision: torch.dtype | None
    ) -> Any:
        """How right the model is on the pruned path, in all processes the same; draws nothing."""
        return evaluate(
            model,
            self.batches,
            dense=self.dense,
            device=processes.device,
            amp_dtype=precision,
            processes=processes,
        )

    def score(self, result: Any) -> dict[str, float]:
        """The measure and its value in 0..1; empty if no image has a label."""
        value = getattr(result, self.measure)
        return {} if value is None else {self.measure: value}


def is_due(step: int, steps: int, epoch_steps: int) -> bool:
    """Whether to evaluate after so many steps: at the end of epochs, and of the run.

    It hangs on nothing but these numbers, so a run that goes on evaluates where it would have.
    """
    epochs = math.ceil(steps / epoch_steps / MAX_EVALUATIONS)
    return step == steps or step % (epochs * epoch_steps) == 0


@dataclass
class Best:
    """The best checkpoint so far.

    Attributes:
        measure: ``"top1"``, ``"miou"`` or ``"agreement"`` on held-out images, the higher the
            better; or ``"loss"``, the mean training loss since the checkpoint before, the lower.
        value: of the best one; None before there is one.
        step: how many steps it has made.
    """

    measure: Measure | Literal["loss"] = "loss"
    value: float | None = None
    step: int | None = None

    def beaten_by(self, value: float | None) -> bool:
        """Whether a value is better than any before; of equal ones the first is the best."""
        if value is None or not math.isfinite(value):
            return False
        if self.value is None:
            return True
        return value < self.value if self.measure == "loss" else value > self.value
