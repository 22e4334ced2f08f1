"""`dynamicvit export --precision int8`, and the commands that run its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamicvit import DynamicViT
from dynamicvit.cli import export as module
from dynamicvit.export import Agreement, ExportMismatchError, Int8Result
from families import DEIT
from pictures import write_image

Main = Callable[..., int]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model: DynamicViT = DEIT.sparse(depth=2, stages=(1,))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many class folders as the model has classes, two images in each."""
    root = tmp_path_factory.mktemp("images")
    for index in range(14):
        write_image(root / f"class{index % 7}" / f"{index}.png", 18 * index, size=(90, 70))
    return root


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broken command writes after all is not written into the repository."""
    monkeypatch.chdir(tmp_path)


def test_int8_the_whole_way(
    saved: Path, folder: Path, tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    file = tmp_path / "small.onnx"
    words = (saved, "-o", file, "--precision", "int8", "--calibrate", folder)
    assert command("export", *words, "--validation", folder) == 0
    said = capsys.readouterr().out
    assert f"int8, calibrated on 11 images of {folder}" in said.replace("\n", " ")
    assert "layers in float: the prediction modules" in said
    assert "of the answers are as in PyTorch" in said
    assert "top-1" in said
    assert command("eval", folder, "--model", file, "--workers", 0, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 14
    picture = folder / "class0" / "0.png"
    assert command("visualize", picture, "--model", file, "-o", tmp_path / "seen") == 0


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Arguments of the quantizer, which takes no time."""
    given: dict[str, object] = {}

    def export_int8(model: DynamicViT, output: Path, **arguments: object) -> Int8Result:
        given.update(arguments)
        agreement = Agreement(8, 0.875, (0.975, 0.5))
        layers = ("predictors.0.project", "head", "blocks.0.mlp.fc2")
        return Int8Result(agreement, layers, frozenset(layers[:2]), "9 images of A", "others of A")

    monkeypatch.setattr(module, "export_int8", export_int8)
    return given


def test_what_is_said_and_passed_on(
    saved: Path, made: dict[str, object], command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--precision", "int8", "--calibrate", "A", "--max-drop", 0.5, "--batch", 4)
    assert command("export", saved, "-o", "a.xml", *words, "--calibration-images", 9) == 0
    assert capsys.readouterr().out.splitlines() == [
        "int8, calibrated on 9 images of A",
        "compared on others of A, 8 images:",
        "  87.5% of the answers are as in PyTorch",
        "  97.5%, 50.0% of the patches kept",
        "layers in float: the prediction modules, head",
        "saved a.xml: dynamicvit eval DATA --model a.xml",
    ]
    expected = {"calibrate": "A", "images": 9, "max_drop": 0.5, "batch": 4, "validation": None}
    assert expected.items() <= made.items()


def test_a_file_that_agrees_too_little(
    saved: Path, monkeypatch: pytest.MonkeyPatch, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ExportMismatchError("in int8 3.0% of the answers")

    monkeypatch.setattr(module, "export_int8", refuse)
    words = ("--precision", "int8", "--calibrate", "A")
    assert command("export", saved, "-o", "a.xml", *words) == 1
    said = capsys.readouterr().err
    assert said == "dynamicvit: a.xml is not written: in int8 3.0% of the answers\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("a.pt2", "--precision", "int8"),
            "--precision int8 writes .onnx or .xml files, not a.pt2",
        ),
        (("a.xml", "--precision", "int8"), "--precision int8 needs --calibrate IMAGES"),
        (("a.xml", "--calibrate", "A"), "--calibrate A goes with --precision int8"),
        (("a.xml", "--max-drop", "0.5"), "--max-drop 0.5 goes with --precision int8"),
        (("a.xml", "--validation", "A"), "--validation A goes with --precision int8"),
        (
            ("a.xml", "--precision", "int8", "--calibrate", "A", "--check", "B"),
            "--check B goes with --precision fp32",
        ),
    ],
)
def test_bad_input(
    words: tuple[str, ...],
    said: str,
    saved: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("export", saved, "-o", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
