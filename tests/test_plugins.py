"""Families and methods of one's own, in every command; options that are given twice."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm

from dynamicvit import UnsupportedBackboneError, sparsify
from dynamicvit.core import registry
from dynamicvit.utils import plugins
from families import DEIT
from pictures import noise_folders

Main = Callable[..., int]

CODE = """
from dynamicvit.core.method import Choice
from dynamicvit.methods import register_method

@register_method("first", does="keeps the first patches")
class First(Choice):
    works_untrained = True

    def keep_scores(self, tokens):
        return -tokens.patches.new_ones(tokens.patches.shape[:2]).cumsum(dim=1)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder that registers a method "first"."""
    (tmp_path / "my_first.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_loaded", [])
    monkeypatch.setenv("DYNAMICVIT_IMPORT", "")
    yield "my_first"
    registry._methods.pop("first", None)
    sys.modules.pop("my_first", None)
    importlib.invalidate_caches()


def test_import_brings_a_method_to_a_command_and_back(
    module: str, command: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = noise_folders(tmp_path / "images", classes=7, each=1, size=DEIT.size)
    sparsify(DEIT.backbone(), 0.5, method="random").save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "method": "first"}))
    words = ("eval", images, "-m", tmp_path / "model", "--workers", 0)
    assert command(*words) == 2
    assert "no method 'first'" in capsys.readouterr().err
    assert command(*words, "--import", module) == 0
    assert "top-1" in capsys.readouterr().out


def test_an_entry_point_brings_a_method(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed package names it; one that is broken is said, no more."""
    point = plugins.entry_points(group="console_scripts")
    made = [type(next(iter(point)))(name, name, plugins.GROUP) for name in ("no_such", module)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: made)
    monkeypatch.syspath_prepend(".")
    warned: list[str] = []
    monkeypatch.setattr(plugins._log, "warning", lambda text, *words: warned.append(text % words))
    assert sparsify(DEIT.backbone(), 0.5, method="first").policy == "removed"
    [line] = warned
    assert "no_such" in line


def test_a_refused_backbone_names_the_page_that_adds_one() -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"docs/adding-a-backbone\.md"):
        sparsify(timm.create_model("test_resnet"), method="dynamicvit")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("eval", "x", "--model", "a", "-m", "b"), "--model is given twice, a and b"),
        (("bench", "--keep-ratio=0.9", "--keep-ratio", "0.7"), "twice, 0.9 and 0.7"),
        (("demo", "-ofirst", "-o", "second"), "--output is given twice, first and second"),
        (("compare", "--macs", "0.5", "--macs", "0.6", "--seeds", "1"), "Missing option '--model'"),
    ],
)
def test_an_option_is_never_silently_the_last(
    words: tuple[str, ...], named: str, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*words) == 2
    assert named in capsys.readouterr().err
