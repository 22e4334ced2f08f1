"""Losses that are not finite: which part it was, in how many images, and what to try."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamicvit.training.step import Measured
    from dynamicvit.utils.distributed import Processes

_log = logging.getLogger(__name__)

#: So many of them in a row are no accident.
MAX_BAD_STEPS = 10
#: So many images of a step are named.
MAX_NAMES = 3


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


def suspects(processes: Processes, paths: Sequence[str], measured: Measured) -> tuple[str, ...]:
    """A few names of images that may be to blame for a step; none where nobody knows the names.

    Of those whose logits are not finite; of the whole batch if there are none. Each process that
    shares the batch calls it.

    Args:
        processes: that shared the batch.
        paths: of this process's images, if they are known.
        measured: the step.
    """
    if measured.bad_answers:
        own = [paths[place] for place in measured.bad_places] if paths else []
    else:
        own = list(paths)
    return tuple(path for few in processes.gather(own[:MAX_NAMES]) for path in few)[:MAX_NAMES]


def report_left_out(
    step: int, parts: Sequence[str], measured: Measured, images: int, names: Sequence[str]
) -> None:
    """Say in the log that a step was left out, and whether images or weights are to blame.

    Args:
        step: which.
        parts: of :func:`not_finite`.
        measured: the step.
        images: in the whole batch.
        names: of :func:`suspects`.
    """
    bad = measured.bad_answers
    whose = f"the logits of {bad} of its {images} images are not"
    if not bad:
        whose = f"the logits of all its {images} images are"
    named = f": {', '.join(names)}" if names else ""
    more = (bad or images) - len(names)
    if names and more:
        named += f" and {more} more"
    _log.warning("step %d left out: %s not finite; %s%s", step, " and ".join(parts), whose, named)


def what_to_try(step: int, parts: Sequence[str], folder: Path) -> str:
    """What the error says when :data:`MAX_BAD_STEPS` steps in a row had to be left out."""
    return (
        f"{' and '.join(parts)} not finite {MAX_BAD_STEPS} steps in a row, up to step {step}: "
        f"{folder} keeps the run as it was before them; try full precision (fp32), a lower "
        "learning_rate, or clip_grad=1"
    )
