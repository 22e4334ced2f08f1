"""A small model, its graphs and its files, each made once: they take most of an export's time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit import DynamicViT
from dynamicvit.core.schedule import Policy
from dynamicvit.runtimes import FORMATS, Description, ExportedModel
from dynamicvit.runtimes.description import describe
from dynamicvit.runtimes.graph import Graph, trace
from families import DEIT

#: Packages of each format.
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}

#: Other libraries' deprecations.
ignore_deprecations = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pickle.*:UserWarning"
)


@cache
def small(policy: Policy = "removed") -> DynamicViT:
    """Two blocks and two stages, one where tokens come back; tests must not change it."""
    if policy == "bypassed":
        return DEIT.sparse(0.5, depth=2, stages=(0,), policy=policy, restore_before=1)
    return DEIT.sparse(depth=2, stages=(0, 1), policy=policy)


@cache
def traced(
    policy: Policy = "removed", batch: int | None = None
) -> tuple[ExportedProgram, Description]:
    """The graph of :func:`small`, and the description of its file."""
    description = describe(small(policy), batch=batch)
    return trace(small(policy), description), description


def write(folder: Path, name: str, policy: Policy, batch: int | None) -> Path:
    """The file of :func:`small` in a format; skips without the format's packages."""
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    file = f"{policy}-{batch}{FORMATS[name].suffix}"
    path = folder / file
    with FileLock(
        folder / f"lock-{file}"
    ):  # of the processes that run tests the first one writes it
        if not path.exists():
            FORMATS[name].write(*traced(policy, batch), path)
    return path


def changed(model: DynamicViT, change: Callable[[list[Tensor]], list[Tensor]]) -> ExportedModel:
    """The model's outputs, changed, as if by a faulty runtime."""
    graph = Graph(model)
    return ExportedModel(lambda images: change(list(graph(images))), describe(model))
