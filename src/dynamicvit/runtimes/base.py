"""The interfaces of runtimes, and of the formats of exported files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import DENSE
from dynamicvit.errors import InputError
from dynamicvit.runtimes.description import Description
from dynamicvit.runtimes.exported import ExportedModel, Runner
from dynamicvit.runtimes.graph import trace
from dynamicvit.utils.outputs import check_set, check_target, is_stream


def without_stages(model: DynamicViT) -> DynamicViT:
    """The model's backbone as a DynamicViT that drops nothing, in ``eval()``; weights are shared.

    It runs the code of the pruned path, with every saving but dropped tokens.
    """
    return model.like(model.bound, DENSE).eval()


class Runtime(ABC):
    """What runs a network.

    Attributes:
        name: key in :data:`~dynamicvit.runtimes.RUNTIMES`.
        precisions: that it computes in.
        devices: types of device that it runs on; empty for all.
        package: the distribution that it is part of.
    """

    name: str
    precisions: tuple[str, ...]
    devices: tuple[str, ...] = ()
    package: str = "torch"

    def ready(self, precision: str = "fp32") -> None:  # noqa: B027 (PyTorch is always installed)
        """Check that everything it needs for a precision is installed.

        Raises:
            InputError: naming what is missing.
        """

    def why_not(self, precision: str, device_type: str) -> str | None:
        """Why it does not run in a precision on a device; ``None`` if it does."""
        if self.devices and device_type not in self.devices:
            return f"{self.name} runs on {' or '.join(self.devices)}, not on {device_type}"
        if precision not in self.precisions:
            return f"{self.name} computes in {' or '.join(self.precisions)}"
        return None

    def dense(self, model: DynamicViT) -> nn.Module:
        """The dense network that the pruned one is compared with."""
        return without_stages(model)

    @abstractmethod
    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """A function that runs one batch; its first call may take longer.

        Args:
            network: in ``eval()``; for a format, from :meth:`Format.load`.
            images: the batch, ``(B, channels, height, width)``.
            precision: one of the runtime's.
        """


class Format(Runtime):
    """A format of exported files, and the runtime of these files, on the CPU.

    A new format is a subclass and an entry in :mod:`dynamicvit.runtimes.registry`. One with "int8"
    among its precisions has :meth:`quantize`.

    Attributes:
        suffix: of its files.
        beside: name of the weights beside a file, with ``{name}`` or ``{stem}`` of the file.
        options: names of the options of :meth:`write`.
    """

    suffix: str
    devices = ("cpu",)
    options: tuple[str, ...] = ()
    beside: str | None = None

    def check_output(self, path: Path, option: str = "") -> None:
        """Check that a file may be written, by :func:`~dynamicvit.utils.outputs.check_target`.

        Args:
            path: of the file.
            option: that named it, for the message.

        Raises:
            InputError: likewise; also for a pipe, as the file is read to be checked.
        """
        check_target(path, option)
        if is_stream(path):
            raise InputError(f"{option} {path} is a pipe or device: give a file".strip())
        if self.beside is not None:
            check_set(path, [self.beside.format(name=path.name, stem=path.stem)], option)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check the options of :meth:`write`.

        Raises:
            InputError: naming an option that the format does not have, or can't use.
        """
        for option, value in options.items():
            if option not in self.options:
                raise InputError(f"{option} {value}: {self.name} files have no {option}")

    def trace(self, model: DynamicViT, description: Description) -> ExportedProgram:
        """The model's graph, of :func:`~dynamicvit.runtimes.graph.trace`."""
        return trace(model, description)

    @abstractmethod
    def write(
        self, program: ExportedProgram, description: Description, path: Path, **options: Any
    ) -> None:
        """Write a file in float32.

        Args:
            program: the graph.
            description: stored in the file.
            path: of the file; large weights may go beside it.
            **options: those of :attr:`options`.

        Raises:
            InputError: if the format can't express the graph.
        """

    @abstractmethod
    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """The runner of a file, with torch's current number of threads, and its description.

        Args:
            path: an existing file.
            precision: one of the format's; "fp32" for a file in int8.

        Raises:
            InputError: if the runtime is missing, or can't read the file.
        """

    def quantize(
        self,
        source: Path,
        target: Path,
        description: Description,
        images: Tensor,
        layers: Mapping[str, str],
        in_float: frozenset[str],
    ) -> None:
        """Write a file in which layers compute in int8.

        Args:
            source: the file in float32.
            target: the file to write.
            description: of the new file.
            images: ``(B, channels, height, width)`` to calibrate on, normalized.
            layers: of :func:`~dynamicvit.runtimes.graph.layers_of`.
            in_float: names of the layers that stay in float32.
        """
        raise NotImplementedError

    def load(self, path: str | Path, precision: str = "fp32") -> ExportedModel:
        """A file as a model.

        Raises:
            InputError: see :func:`~dynamicvit.runtimes.load_exported`.
        """
        runs_in = [name for name in self.precisions if name != "int8"]  # int8 is in the file
        if precision not in runs_in:
            raise InputError(f"{path} runs in {' or '.join(runs_in)}, not in {precision}")
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        return ExportedModel(*self.read(Path(path), precision)).eval()

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """The file's outputs; its precision was set by :meth:`load`."""
        del precision
        assert isinstance(network, ExportedModel)
        return partial(torch.inference_mode()(network.outputs), images)
