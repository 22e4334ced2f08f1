"""The notebooks of examples/ run from top to bottom, and are committed without outputs.

Outputs would be pictures of one machine in every diff; what a cell shows is said above it.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from rows import some_or_all

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


#: For each notebook words of its cells, and others with which it shows the same on less.
SMALLER = {
    "train_and_export": {
        "range(40)": "range(20)",
        "depth=4": "depth=2",
        '"images=32"': '"images=16"',
        '"dense.images=32"': '"dense.images=16"',
        'export(model, "model.pt2")': 'export(model, "model.pt2", batch=4)',  # traced faster
    },
    "what_it_drops": {"range(100)": "range(10)"},
}


def run_cell(source: str, where: str, names: dict[str, Any]) -> object:
    """As Jupyter: gives the value of a last line that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), where, "exec", dont_inherit=True), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), where, "eval", dont_inherit=True), names)


#: In every run; what the other one calls is in other tests.
ALWAYS = [path for path in NOTEBOOKS if path.stem == "train_and_export"]


@some_or_all("notebook", ALWAYS, NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = {
        f"{notebook.name}, cell {number}": "".join(cell["source"])
        for number, cell in enumerate(cells(notebook))
        if cell["cell_type"] == "code"
    }
    for said, small in SMALLER[notebook.stem].items():
        assert any(said in source for source in code.values())
        code = {where: source.replace(said, small) for where, source in code.items()}
    shown = [run_cell(source, where, names) for where, source in code.items()]
    if notebook.stem == "what_it_drops":
        dense, _, picture, share, _ = shown
        assert dense == ((8, 3, 96, 96), "8 of 8 right")
        assert picture.size > (400, 400)  # type: ignore[attr-defined]
        picture.load()  # type: ignore[attr-defined]  # closes its file
        kept, background = (int(part.split()[1].strip("%,")) for part in str(share).split(", "))
        assert kept > background + 20
    else:
        assert len(names["made"].path.read_bytes()) > 1e5
        assert names["again"].top1 == names["result"].top1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_short_and_says_what_comes(notebook: Path) -> None:
    kinds = [cell["cell_type"] for cell in cells(notebook)]
    assert kinds[0] == kinds[-1] == "markdown"
    for before, cell in zip(cells(notebook), cells(notebook)[1:], strict=False):
        if cell["cell_type"] == "code":
            assert "".join(before["source"]).startswith("You will see: ")
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            assert len(cell["source"]) <= 16
