"""Losses that are not finite: which part it was, in how many images, and what to try."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamicvit.training.step import Measured

_log = logging.getLogger(__name__)

#: So many of them in a row are no accident.
MAX_BAD_STEPS = 10


def not_finite(losses: Mapping[str, float], gradient_norm: float) -> tuple[str, ...]:
    """What of a step is not finite, by name: parts of the loss, or the gradient alone.

    Args:
        losses: each part and the total.
        gradient_norm: looked at only where the losses are finite.
    """
    bad = [name for name, part in losses.items() if not math.isfinite(part)]
    if bad:  # the total follows from its parts, unless it overflowed by itself
        return tuple(name for name in bad if name != "total") or ("total",)
    return () if math.isfinite(gradient_norm) else ("gradient",)


def report_left_out(step: int, parts: Sequence[str], measured: Measured, images: int) -> None:
    """Say in the log that a step was left out, and whether images or weights are to blame.

    Args:
        step: which.
        parts: of :func:`not_finite`.
        measured: the step.
        images: in the whole batch.
    """
    whose = f"the logits of {measured.bad_answers} of its {images} images are not"
    if not measured.bad_answers:
        whose = f"the logits of all its {images} images are"
    _log.warning("step %d left out: %s not finite; %s", step, " and ".join(parts), whose)


def what_to_try(step: int, parts: Sequence[str], folder: Path) -> str:
    """What the error says when :data:`MAX_BAD_STEPS` steps in a row had to be left out."""
    return (
        f"{' and '.join(parts)} not finite {MAX_BAD_STEPS} steps in a row, up to step {step}: "
        f"{folder} keeps the run as it was before them; try full precision (fp32), a lower "
        "learning_rate, or clip_grad=1"
    )
