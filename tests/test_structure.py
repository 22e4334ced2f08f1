"""What keeps the code easy to hold: arrows that point one way, files of one idea, a short way."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import dynamicvit
from dynamicvit import sparsify
from families import DEIT, POLICIES

ROOT = Path(dynamicvit.__file__).parent

#: Rooms from the bottom up; each may import those before it, and itself.
ROOMS = (
    ("errors", "_version"),
    ("utils",),
    ("layers",),
    ("backbones", "heads"),
    ("core",),
    ("costs",),
    ("budgets", "methods"),
    ("transformers",),
    ("sparsification",),
    ("checkpoints", "data"),
    ("plots", "evaluation", "runtimes"),
    ("streaming", "training", "tuning"),
    ("comparison", "demo"),
    ("app",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

#: Files that are tables for the most part.
TABLES: set[str] = set()


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ["dynamicvit", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imported(name: str, everywhere: bool) -> set[str]:
    """Our modules that one imports: when it is imported itself, or in its functions too."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    body: list[Any] = [*ast.walk(tree)] if everywhere else list(tree.body)
    skipped = {
        id(node)
        for check in ast.walk(tree)
        if isinstance(check, ast.If) and "TYPE_CHECKING" in ast.dump(check.test)
        for node in ast.walk(check)
    }
    found = set()
    for node in body:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & MODULES.keys()) or {node.module}
    return {target for target in found if target in MODULES and target != name}


def test_no_import_cycle() -> None:
    TopologicalSorter({name: imported(name, everywhere=False) for name in MODULES}).prepare()


def test_arrows_point_one_way() -> None:
    for name in MODULES.keys() - {"dynamicvit", "dynamicvit.__main__"}:
        room = name.split(".")[1]
        for target in imported(name, everywhere=False):
            if target == "dynamicvit":
                pytest.fail(f"{name} imports the package's front")
            assert LEVEL[target.split(".")[1]] <= LEVEL[room], f"{name} imports {target}"


def test_nothing_imports_the_command_line() -> None:
    for name in MODULES:
        if name.split(".")[1:2] not in (["cli"], ["__main__"]):
            assert not any("dynamicvit.cli" in target for target in imported(name, True)), name


def test_files_are_short_and_the_front_is_small() -> None:
    long = {
        name: lines
        for name, path in MODULES.items()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long.keys() - TABLES, long
    assert len([path for path in ROOT.glob("*.py")]) <= 8
    loop = ROOT / "core" / "paths.py"
    assert len(loop.read_text(encoding="utf-8").splitlines()) <= 300, "the way of an image"


@pytest.mark.parametrize("which", [*POLICIES, "default"])
def test_an_image_passes_through_eight_files(which: str) -> None:
    made = {"default": lambda: sparsify(DEIT.backbone()).eval()}
    model = made.get(which, lambda: DEIT.sparse(policy=which))()  # type: ignore[arg-type]
    images, files = DEIT.images(), set()
    model(images)  # the first time it looks whether anybody trained it

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(ROOT):
            files.add(Path(frame.f_code.co_filename).relative_to(ROOT).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        with torch.no_grad():
            model(images)
    finally:
        sys.setprofile(before)
    assert "core/paths.py" in files
    assert len(files) <= 8, sorted(files)


def test_percents_are_written_with_a_space() -> None:
    """As in the documentation: ``97.2 %``, which ``:.1%`` would not give."""
    shown = [
        name
        for name, path in MODULES.items()
        if re.search(r":[\d.]*%\}", path.read_text(encoding="utf-8"))
    ]
    assert not shown
