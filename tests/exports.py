"""A small model, its graphs and its files, each made once: they take most of an export's time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from families import DEIT, Family

#: Packages of each format.
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}

#: Other libraries' deprecations.
ignore_deprecations = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pickle.*:UserWarning"
)


#: Without positions, so that equal patches are equal tokens.
NOWHERE = Family("nowhere", "vit_tiny_patch16_224", {"pos_embed": "none"})

#: As docs/export.md prepares images: for square input.
SQUARE = replace(DEIT, name="square", grid=(4, 4))


def family_of(policy: Policy) -> Family:
    """The family of :func:`small`: a file of each serves several tests."""
    return {"merged": NOWHERE, "bypassed": SQUARE}.get(policy, DEIT)


@cache
def small(policy: Policy = "removed") -> DynamicViT:
    """Two stages, each before a block; tests must not change it.

    Where tokens come back the second stage drops nothing: its patches are the first one's, under a
    name of their own.
    """
    family = family_of(policy)
    if policy == "bypassed":
        again = {"restore_before": 2, "policy": policy}
        return family.sparse((0.5, 0.5), depth=3, stages=(0, 1), **again)
    return family.sparse(depth=2, stages=(0, 1), policy=policy)


@cache
def shallow() -> DynamicViT:
    """One stage and one block, for tests that have to export; they must not change it."""
    return DEIT.sparse(depth=1, stages=(0,))


@cache
def traced(
    policy: Policy = "removed", batch: int | None = None
) -> tuple[ExportedProgram, Description]:
    """The graph of :func:`small`, and the description of its file."""
    description = describe(small(policy), batch=batch)
    return trace(small(policy), description), description


#: Of each model by its identity, with the model, so that no other one gets the same.
_GRAPHS: dict[tuple[int, int | None], tuple[DynamicViT, ExportedProgram]] = {}


def graph_of(model: DynamicViT, description: Description) -> ExportedProgram:
    """A model's graph, traced when it is first asked for: it must not change afterwards."""
    key = (id(model), description.batch)
    if key not in _GRAPHS:
        _GRAPHS[key] = model, trace(model, description)
    return _GRAPHS[key][1]


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
