"""What can be measured, and what of it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.runtimes import RUNTIMES

#: All that some runtime computes in.
PRECISIONS = tuple(dict.fromkeys(name for each in RUNTIMES.values() for name in each.precisions))


class Setting(NamedTuple):
    """How a network is run.

    Attributes:
        runtime: a key of ``RUNTIMES``.
        precision: one of the runtime's.
    """

    runtime: str
    precision: str


def settings_of(
    runtimes: Sequence[str], precisions: Sequence[str], device_type: str
) -> tuple[list[Setting], list[str]]:
    """Each runtime in each precision, as far as there is such a thing.

    Args:
        runtimes: keys of ``RUNTIMES``.
        precisions: of :data:`PRECISIONS`.
        device_type: "cpu", "cuda" or another, where the model is.

    Returns:
        What can be measured, and for each of the others a line that says why it can't.

    Raises:
        InputError: for an unknown name, or if nothing is left.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise InputError(f"a runtime is one of {', '.join(RUNTIMES)}, got {runtime!r}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"a precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
    found: list[Setting] = []
    left_out: list[str] = []
    for runtime in dict.fromkeys(runtimes):
        for precision in dict.fromkeys(precisions):
            reason = RUNTIMES[runtime].why_not(precision, device_type)
            if reason is None:
                found.append(Setting(runtime, precision))
            else:
                left_out.append(f"{runtime} {precision} is left out: {reason}")
    if not found:
        why = "; ".join(left_out) or "give at least one runtime and one precision"
        raise InputError(f"nothing to measure: {why}")
    return found, left_out


def check_plan(
    batch_sizes: Sequence[int],
    threads: int,
    seconds: float = 1.0,
    samples: int | None = None,
) -> None:
    """Refuse numbers that can't be.

    Raises:
        InputError: naming the number.
    """
    for size in batch_sizes:
        if size < 1:
            raise InputError(f"a batch size is at least 1, got {size}")
    if not batch_sizes:
        raise InputError("nothing to measure: give at least one batch size")
    if threads < 1:
        raise InputError(f"threads are at least 1, got {threads}")
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds are positive, got {seconds}")
    if samples is not None and samples < 2:
        raise InputError(f"a spread needs at least 2 samples, got {samples}")


def check_weights(model: nn.Module) -> None:
    """Refuse weights whose precision a row would then name wrongly.

    Raises:
        InputError: naming the first that is not float32.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}, but precisions are compared from float32 weights "
                f"(bf16 under autocast): call model.float() first"
            )
