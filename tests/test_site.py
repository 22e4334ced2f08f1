"""The documentation site builds without a warning, has every public name, and fetches nothing."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import typer
from torch import nn

import dynamicvit
import dynamicvit_command
from dynamicvit_command import COMMANDS
from exports import shallow
from pictures import noise_folders
from test_readme import SMALL, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_has_an_entry(site: Path) -> None:
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    for name in set(dynamicvit.__all__) - {"__version__"}:
        kind = getattr(dynamicvit, name)
        where = {f'id="dynamicvit.{name}"', f'id="{kind.__module__}.{name}"'}
        assert any(entry in page for entry in where), name
    assert "pruned path" in page  # docstrings are there, and not their names alone
    assert ":class:" not in page
    assert ":func:" not in page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures are the site's own; links may lead away."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        tags = re.findall(r"<(?:script|img|iframe)[^>]*>|<link[^>]*stylesheet[^>]*>", text)
        assert tags
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)]


def test_no_link_to_code_is_left(site: Path) -> None:
    page = (site / "adding-a-method" / "index.html").read_text(encoding="utf-8")
    assert "as <code>PredictionModule</code> does" in page
    assert "../src" not in page


def test_every_command_on_every_page_can_be_typed() -> None:
    """Commands and options exist, on pages too whose commands take too long to run."""
    options: dict[str, set[str]] = {}
    for name in COMMANDS:
        entry: Any = typer.main.get_command(dynamicvit_command.app).commands[name]  # type: ignore[attr-defined]
        command = entry.make_context(name, [], resilient_parsing=True).command
        spelled = (
            option for known in command.params for option in known.opts + known.secondary_opts
        )
        options[name] = {*spelled, "--help"}
    seen = 0
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^dynamicvit .*$", text, re.M):
            _, name, *words = shlex.split(line, comments=True)
            asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}
            assert asked <= options[name], f"{page.name}: {line}"
            seen += 1
    assert seen > 40


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the pages take for granted: photographs, a model by name, a run."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    noise_folders(Path("all"), classes=1, each=4, size=(64, 80))
    Path("all", "0").rename("PHOTOS")
    shutil.copy("PHOTOS/0.png", "photo.jpg")
    shallow().save_pretrained("deit_small_patch16_224")
    return {"small": SMALL}


def backbone(*_: Any, **__: Any) -> nn.Module:
    return timm.models.deit_tiny_patch16_224(**SMALL)


MORE = {
    "train": ("--set", "images=2", "--set", "batch_size=2", "--workers", "0"),
    "eval": ("--workers", "0"),
    "bench": ("--samples", "2", "--precision", "fp32", "--batch-size", "1", "--threads", "1"),
}


@pytest.mark.parametrize("page", ["getting-started.md", "why-not-faster.md"])
def test_the_commands(page: str, mine: dict[str, Any], command: Callable[..., int]) -> None:
    if page == "why-not-faster.md":
        shutil.copytree("deit_small_patch16_224", "runs/mine")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = re.findall(r"^dynamicvit .*$", text, re.M)
    assert len(lines) == {"getting-started.md": 6, "why-not-faster.md": 1}[page]
    for line in lines:
        words = shlex.split(line)[1:]
        assert command(*words, *MORE.get(words[0], ())) == 0, line
    if page == "getting-started.md":
        run("docs/getting-started.md", {}, {"dense=True)": "dense=True, workers=0)"})
        assert Path("kept.png").stat().st_size > 1000


def test_the_code(mine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", backbone)
    names = {"images": torch.randn(2, 3, 64, 64)}
    made = run("docs/index.md", names, {})
    assert made["logits"].shape == (2, 4)
    run("docs/why-not-faster.md", made, {})
