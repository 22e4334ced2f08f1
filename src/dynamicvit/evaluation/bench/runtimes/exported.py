"""Exported files in the runtimes that they are for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.runtimes.base import Job, Runtime
from dynamicvit.export import FORMATS, ExportedModel, export, export_int8, load_exported
from dynamicvit.export.quantization import INT8


class Exported(Runtime):
    """Files for any number of images, written and checked as ``dynamicvit export`` does.

    Int8 that is not calibrated on given images is for speed only, and its answers are not checked.

    Args:
        name: of the format.
        precisions: those that its runtime computes in.
    """

    def __init__(self, name: str, *precisions: str) -> None:
        self.name = name
        self.precisions = precisions

    def check(self, precision: str) -> None:
        """See to it that files can be written and run.

        Raises:
            InputError: naming the package that is missing.
        """
        FORMATS[self.name].ready()
        if precision == "int8":
            INT8[self.name].ready()

    def why_not(self, precision: str, device_type: str) -> str | None:
        """Files are run on the CPU."""
        if device_type != "cpu":
            return f"exported files are run on the CPU, and the model is on {device_type}"
        return super().why_not(precision, device_type)

    def prepare(self, job: Job) -> Callable[[], object]:
        """The network's file, loaded."""
        exported = load(self.write(job), job.precision)
        return partial(run_file, exported, job.images)

    def write(self, job: Job) -> Path:
        """The network's file, once for all batch sizes, and for the precisions that share it."""
        if not isinstance(job.network, DynamicViT):
            raise InputError(f"{self.name} runs a DynamicViT only, got {type(job.network)}")
        kind = "-int8" if job.precision == "int8" else ""
        file = job.folder / f"{job.name}{kind}{FORMATS[self.name].suffix}"
        if file.exists():
            return file
        height, width = job.images.shape[-2:]
        if not kind:
            export(job.network, file, image_size=(height, width))
        elif job.calibrate is not None:
            export_int8(job.network, file, calibrate=job.calibrate, image_size=(height, width))
        else:  # answers don't count
            export_int8(job.network, file, image_size=(height, width), least_agreement=0.0)
        return file


def load(file: Path, precision: str) -> ExportedModel:
    """The file, to run in a precision; int8 is in the file itself."""
    return load_exported(file, "fp32" if precision == "int8" else precision)


def run_file(exported: ExportedModel, images: Tensor) -> None:
    """One batch, its results thrown away."""
    with torch.inference_mode():
        exported.outputs(images)
