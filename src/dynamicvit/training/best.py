"""Which checkpoint of a run is the best, and by what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dynamicvit.training.held_out import Measure


@dataclass
class Best:
    """The best checkpoint so far.

    Attributes:
        measure: ``"top1"`` or ``"agreement"`` on held-out images, the higher the better; or
            ``"loss"``, the mean training loss since the checkpoint before, the lower the better.
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
