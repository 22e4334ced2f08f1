"""What a runtime is to us: a function from a batch to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from dynamicvit.errors import InputError

Runner = Callable[[Tensor], Sequence[Tensor]]
"""From images ``(B, channels, height, width)``, float32, contiguous and on the CPU, to the outputs
that :attr:`~dynamicvit.export.Description.outputs` names."""


def only_fp32(path: Path, precision: str) -> None:
    """Refuse a precision that a runtime can't be asked for.

    Raises:
        InputError: naming it.
    """
    if precision != "fp32":
        raise InputError(f"{path} runs in fp32, not in {precision}; OpenVINO's .xml can do bf16")
