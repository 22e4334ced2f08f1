"""A small model, its graphs and its files, each made once: they take most of an export's time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit import DynamicViT
from dynamicvit.core.schedule import Policy
from dynamicvit.runtimes import FORMATS, Description, ExportedModel, Format
from dynamicvit.runtimes.description import describe
from dynamicvit.runtimes.graph import Graph, trace
from families import DEIT, Family

if find_spec("onnxscript"):
    from onnxscript.rewriter import RewriteRule
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    # Torch looks up its operators' translations for each graph: a fifth of a small one's time.
    ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))

    _rewrite = RewriteRule.try_rewrite

    @cache
    def _last_operator(rule: Any) -> str | None:
        pattern = getattr(rule, "_target_pattern", None)
        found = pattern and pattern.output_nodes[0].op_identifier()
        return found and found[1]

    def _try_rewrite(rule: Any, model: Any, graph: Any, node: Any, **rest: Any) -> Any:
        """The same, but no rule looks long at other operators than it ends in: a fifth as well."""
        if _last_operator(rule) in (None, node.op_type):
            return _rewrite(rule, model, graph, node, **rest)
        return None

    RewriteRule.try_rewrite = _try_rewrite

#: Packages of each format.
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}

#: Other libraries' deprecations.
ignore_deprecations = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*pickle.*:UserWarning"
)


#: Without positions, so that equal patches are equal tokens; for square input, as docs/export.md
#: prepares images.
NOWHERE = Family("nowhere", "vit_tiny_patch16_224", {"pos_embed": "none"}, grid=(4, 4))

#: Tokens that come back at the end are pooled.
SQUARE = replace(DEIT, name="square", grid=(4, 4), kwargs={"global_pool": "avg"})


def family_of(policy: Policy) -> Family:
    """The family of :func:`small`: a file of each serves several tests."""
    return {"merged": NOWHERE, "bypassed": SQUARE}.get(policy, DEIT)


@cache
def small(policy: Policy = "removed") -> DynamicViT:
    """One stage and one block, or where tokens come back two; tests must not change it.

    Where tokens come back the second stage drops nothing: its patches are the first one's, under a
    name of their own.
    """
    if policy == "removed":
        return shallow()
    if policy == "merged":
        return NOWHERE.sparse(depth=1, stages=(0,), policy=policy)
    return family_of(policy).sparse((0.5, 0.5), depth=2, stages=(0, 1), policy=policy)


@cache
def shallow() -> DynamicViT:
    """One stage and one block, which takes half of the time to export; tests must not change it."""
    return DEIT.sparse(depth=1, stages=(0,))


@cache
def traced(
    policy: Policy = "removed", batch: int | None = None
) -> tuple[ExportedProgram, Description]:
    """The graph of :func:`small`, and the description of its file."""
    description = describe(small(policy), batch=batch)
    return graph_of(small(policy), description), description


#: Of each model by what its file says of it, and its weights.
_GRAPHS: dict[tuple[object, ...], ExportedProgram] = {}


def graph_of(model: DynamicViT, description: Description) -> ExportedProgram:
    """A model's graph, traced when it is first asked for: also of a model that was saved."""
    about = replace(description, precision="fp32").to_json()
    key = (about, *(value.double().sum().item() for value in model.state_dict().values()))
    if key not in _GRAPHS:
        _GRAPHS[key] = trace(model, description)
    return _GRAPHS[key]


def written_once(folder: Path, kind: Format) -> Callable[..., None]:
    """A format's ``write`` that converts a graph of :func:`graph_of` once, and copies its files."""
    convert = kind.write

    def write(program: ExportedProgram, about: Description, path: Path, **options: Any) -> None:
        kept = folder / f"{kind.name}-{id(program)}-{hash((about.to_json(), *options.items()))}"
        if not kept.is_dir():
            convert(program, about, path, **options)
            kept.mkdir()
            for part in path.parent.glob(f"{path.stem}.*"):
                shutil.copy(part, kept / part.suffix)
        for part in kept.iterdir():
            shutil.copy(part, path.with_suffix(part.name))

    return write


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
