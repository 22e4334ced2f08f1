"""What runs a network, and what is asked of the formats of exported files."""

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


def without_stages(model: DynamicViT) -> DynamicViT:
    """The model's backbone as a DynamicViT that drops nothing, in ``eval()``; weights are shared.

    Pruning is compared with it where both should run the same code, with all savings besides
    dropped tokens.
    """
    return DynamicViT(model.backbone, DENSE, []).eval()


class Runtime(ABC):
    """What runs a network.

    Attributes:
        name: key in :data:`~dynamicvit.runtimes.RUNTIMES`.
        precisions: what it computes in.
        package: the distribution that it is part of.
    """

    name: str
    precisions: tuple[str, ...]
    package: str = "torch"

    @abstractmethod
    def ready(self, precision: str = "fp32") -> None:
        """Check that all it needs is installed.

        Args:
            precision: one of the runtime's.

        Raises:
            InputError: naming what is missing.
        """

    def why_not(self, precision: str, device_type: str) -> str | None:
        """Why it does not run in a precision on a device; ``None`` if it does."""
        del device_type
        if precision in self.precisions:
            return None
        return f"{self.name} computes in {' or '.join(self.precisions)}"

    def dense(self, model: DynamicViT) -> nn.Module:
        """The network that the pruned one is compared with: without stages, all else the same."""
        return without_stages(model)

    @abstractmethod
    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """A function that runs one batch. Its first call may take longer.

        Args:
            network: in ``eval()``; for a format, what its :meth:`Format.load` gave.
            images: ``(B, channels, height, width)``, all that it will be run on.
            precision: one of the runtime's.
        """


class Format(Runtime):
    """A format of exported files, with the runtime that they are for. Files run on the CPU.

    A new one is a subclass in a file of its own, and an entry in
    :mod:`dynamicvit.runtimes.registry`. With "int8" among its precisions it has :meth:`quantize`.

    Attributes:
        suffix: ending of its files.
        options: arguments of :meth:`write` that only this format has.
    """

    suffix: str
    options: tuple[str, ...] = ()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options of :meth:`write` that the format does not have, or their values.

        Raises:
            InputError: naming the option.
        """
        for option, value in options.items():
            if option not in self.options:
                raise InputError(f"{option} {value}: {self.name} files have no {option}")

    def trace(self, model: DynamicViT, description: Description) -> ExportedProgram:
        """The model's graph.

        Args:
            model: on the CPU, in float32.
            description: of the file to be.
        """
        return trace(model, description)

    @abstractmethod
    def write(
        self, program: ExportedProgram, description: Description, path: Path, **options: Any
    ) -> None:
        """Write a file in float32.

        Args:
            program: the graph.
            description: kept inside the file.
            path: the file; what does not fit into it goes beside it.
            **options: of :attr:`options`.

        Raises:
            InputError: if the format can't express the graph.
        """

    @abstractmethod
    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """The runner of a file, with as many threads as torch has now, and its description.

        Args:
            path: a file that exists.
            precision: to compute in, one of the format's; "fp32" for a file in int8.

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
            source: the same in float32.
            target: the file to write.
            description: of the new file.
            images: ``(B, channels, height, width)`` to calibrate on, normalized.
            layers: of :func:`~dynamicvit.runtimes.graph.layers_of`.
            in_float: names of the layers that stay in float32.

        Raises:
            InputError: if the format has no int8.
        """
        raise InputError(f"{target}: {self.name} files have no int8")

    def load(self, path: str | Path, precision: str = "fp32") -> ExportedModel:
        """A file as a model.

        Raises:
            InputError: see :func:`~dynamicvit.runtimes.load_exported`.
        """
        runs_in = [name for name in self.precisions if name != "int8"]  # that is in the file
        if precision not in runs_in:
            raise InputError(f"{path} runs in {' or '.join(runs_in)}, not in {precision}")
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file")
        return ExportedModel(*self.read(Path(path), precision)).eval()

    def why_not(self, precision: str, device_type: str) -> str | None:
        """Files run on the CPU only."""
        if device_type != "cpu":
            return f"exported files run on the CPU, and the model is on {device_type}"
        return super().why_not(precision, device_type)

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """A loaded file's outputs; the file was loaded in a precision."""
        del precision
        assert isinstance(network, ExportedModel)
        return partial(_outputs, network, images)


@torch.inference_mode()
def _outputs(exported: ExportedModel, images: Tensor) -> list[Tensor]:
    return exported.outputs(images)
