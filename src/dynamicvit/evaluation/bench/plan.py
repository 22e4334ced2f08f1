"""Checks of the settings to measure, and the exported files that they need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.runtimes import PRECISIONS, RUNTIMES, ExportedModel, Format, export


class Setting(NamedTuple):
    """How a network is run.

    Attributes:
        runtime: a key of :data:`~dynamicvit.runtimes.RUNTIMES`.
        precision: one of the runtime's.
    """

    runtime: str
    precision: str


def settings_of(
    runtimes: Sequence[str], precisions: Sequence[str], device_type: str
) -> tuple[list[Setting], list[str]]:
    """Each runtime in each precision that it computes in, and a line of why for each other pair.

    Raises:
        InputError: for an unknown name, or if no pair can be measured.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise InputError(f"runtime {runtime!r}: give one of {', '.join(RUNTIMES)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r}: give one of {', '.join(PRECISIONS)}")
    found: list[Setting] = []
    skipped: list[str] = []
    for runtime in dict.fromkeys(runtimes):
        for precision in dict.fromkeys(precisions):
            reason = RUNTIMES[runtime].why_not(precision, device_type)
            if reason is None:
                found.append(Setting(runtime, precision))
            else:
                skipped.append(f"{runtime} {precision} is left out: {reason}")
    if not found:
        why = "; ".join(skipped) or "give at least one runtime and one precision"
        raise InputError(f"nothing to measure: {why}")
    return found, skipped


def check_plan(
    batch_sizes: Sequence[int],
    threads: int,
    seconds: float = 1.0,
    samples: int | None = None,
) -> None:
    """Check the numbers of a benchmark.

    Raises:
        InputError: naming the one that can't be used.
    """
    for size in batch_sizes:
        if size < 1:
            raise InputError(f"batch size {size}: give at least 1")
    if not batch_sizes:
        raise InputError("nothing to measure: give at least one batch size")
    if threads < 1:
        raise InputError(f"threads {threads}: give at least 1")
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds {seconds}: give a positive number")
    if samples is not None and samples < 2:
        raise InputError(f"samples {samples}: give at least 2")


def check_weights(model: nn.Module) -> None:
    """Check that weights are float32: in others a row would name the wrong precision.

    Raises:
        InputError: naming the first that is not.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}: give the model in float32, by model.float(); bf16 "
                f"is autocast's"
            )


def network_file(
    network: DynamicViT,
    name: str,
    kind: Format,
    precision: str,
    image_size: tuple[int, int],
    folder: Path,
    calibrate: str | None = None,
) -> Path:
    """A network's file for any number of images, written by ``export`` if it does not exist.

    Int8 has a file of its own. Without images to calibrate on it is for speed only, and its answers
    are not checked.
    """
    stored = "int8" if precision == "int8" else "fp32"
    file = folder / kind.name / f"{name}-{stored}{kind.suffix}"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        unchecked = {"least_agreement": 0.0} if precision == "int8" and calibrate is None else {}
        export(
            network,
            file,
            format=kind.name,
            precision=stored,
            image_size=image_size,
            calibrate=calibrate if precision == "int8" else None,
            **unchecked,
        )
    return file


def load_file(file: Path, kind: Format, precision: str) -> ExportedModel:
    """A network's file as a model that runs in a precision."""
    return kind.load(file, "fp32" if precision == "int8" else precision)
