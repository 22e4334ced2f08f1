"""Losses that are not finite: which part it was, in which images, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

#: So many of them in a row are no accident.
MAX_BAD_STEPS = 10


def not_finite(losses: Mapping[str, Tensor], gradient_norm: float) -> tuple[str, ...]:
    """What of a step is not finite, by name: parts of the loss, or the gradient alone.

    Args:
        losses: each part and the total, scalars.
        gradient_norm: looked at only where the losses are finite.
    """
    bad = [name for name, part in losses.items() if not torch.isfinite(part)]
    if bad:  # the total follows from its parts, unless it overflowed by itself
        return tuple(name for name in bad if name != "total") or ("total",)
    return () if math.isfinite(gradient_norm) else ("gradient",)


def whose_answer(logits: Tensor) -> str:
    """In which images of a batch the network's answer ``(B, classes)`` is not finite, in words.

    All of them: the weights or the precision are to blame. A few: those images.
    """
    bad = (~logits.detach().isfinite().all(dim=1)).nonzero().flatten().tolist()
    if not bad:
        return "every image's logits are finite"
    if len(bad) == len(logits):
        return f"the logits of all {len(bad)} images are not"
    return f"the logits of images {', '.join(map(str, bad))} of the batch's {len(logits)} are not"


def what_to_try(step: int, parts: Sequence[str], folder: Path) -> str:
    """What the error says when :data:`MAX_BAD_STEPS` steps in a row had to be left out."""
    return (
        f"{' and '.join(parts)} not finite {MAX_BAD_STEPS} steps in a row, up to step {step}: "
        f"{folder} keeps the run as it was before them; try full precision (fp32), a lower "
        "learning_rate, or clip_grad=1"
    )
