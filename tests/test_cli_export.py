"""`dynamicvit export`, and the commands that run its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from dynamicvit.cli import export as module
from dynamicvit.data import eval_transform, top_classes
from dynamicvit.runtimes import FORMATS, ExportMismatchError
from exports import ignore_deprecations, small
from families import DEIT
from pictures import noise_folders

Main = Callable[..., int]

pytestmark = [ignore_deprecations, pytest.mark.usefixtures("traced_once")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small().save_pretrained(folder)
    return folder


@pytest.fixture
def file(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Read once, though a test runs many commands: that takes most of one's time."""
    monkeypatch.setattr(FORMATS["torch"], "read", cache(FORMATS["torch"].read))
    return exported("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return noise_folders(root, classes=small().num_classes, each=2, size=(70, 90))


@pytest.fixture
def numbers(folder: Path, command: Main, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """What ``eval`` of a model or a file prints as JSON."""

    def run(*words: object) -> dict:
        capsys.readouterr()
        assert command("eval", folder, "--workers", 0, "--json", "-", "--model", *words) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_export(saved: Path, folder: Path, tmp_path: Path, command: Main, numbers, capsys) -> None:
    file = tmp_path / "small.pt2"
    words = (saved, "-o", file, "--keep-ratio", 0.5, "--batch", 3, "--validation", folder)
    assert command("export", *words) == 0
    assert f"14 images of {folder}" in capsys.readouterr().out
    found = numbers(file)
    assert found["keep_ratios"] == [0.5]
    assert found["images"] == 14


def test_the_backbone_alone(
    saved: Path, folder: Path, tmp_path: Path, command: Main, numbers
) -> None:
    file = tmp_path / "dense.pt2"
    words = ("--dense", "--batch", 3, "--validation", folder)  # any batch takes longer to trace
    assert command("export", saved, "-o", file, *words) == 0
    found, own = numbers(file), numbers(saved, "--dense")
    assert found["stages"] == []
    assert found["top1"] == own["top1"]


def test_eval_runs_a_file_as_the_model(saved: Path, file: Path, numbers) -> None:
    own, exported = numbers(saved), numbers(file)
    for key in ("top1", "top5", "images", "image_size", "stages", "keep_ratios"):
        assert exported[key] == own[key]


def test_visualize_runs_a_file(
    file: Path, folder: Path, tmp_path: Path, command: Main, capsys
) -> None:
    model = small()
    image = folder / "0" / "0.png"
    assert command("visualize", image, "--model", file, "-o", tmp_path) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "0_dynamicvit.png").is_file()
    kept = ", ".join(map(str, model.schedule.kept(DEIT.num_patches)))
    assert f"kept {kept} of {DEIT.num_patches} patches" in said
    with torch.no_grad():
        logits = model(eval_transform(model)(Image.open(image))[None])[0]
    [best] = top_classes(logits, [f"class {index}" for index in range(model.num_classes)], k=1)
    assert f"{100 * best.probability:.1f} %  {best.name}" in said
    assert "dense:" not in said


def test_a_file_that_differs_ends_with_1(
    saved: Path, tmp_path: Path, command: Main, one_line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mismatch(*_: object, **__: object) -> None:
        raise ExportMismatchError("logits differ")

    monkeypatch.setattr(module, "export_model", mismatch)
    file = tmp_path / "small.pt2"
    assert command("export", saved, "-o", file) == 1
    said = one_line()
    assert str(file) in said
    assert "logits differ" in said


def test_int8_the_whole_way(
    saved: Path, folder: Path, tmp_path: Path, command: Main, numbers, capsys
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    file = tmp_path / "small.onnx"
    words = (saved, "-o", file, "--precision", "int8", "--calibrate", folder, "--opset", 20)
    assert command("export", *words, "--validation", folder) == 0
    said = capsys.readouterr().out
    assert f"11 images of {folder}" in said
    assert f"{folder}, 14 images" in said
    assert "top-1" in said
    assert "the prediction modules" in said
    assert numbers(file)["images"] == 14


def test_bad_input_is_one_line_and_exit_code_2(
    saved: Path, file: Path, folder: Path, tmp_path: Path, command: Main, one_line
) -> None:
    out = tmp_path / "a.pt2"
    of_file = ("eval", folder, "--model", file, "--workers", 0)
    for words, said in (
        (("export", saved, "-o", tmp_path / "a.tflite"), "a.tflite"),
        (("export", saved, "-o", out, "--format", "onnx"), "onnx"),
        (("export", saved, "-o", tmp_path / "a.onnx", "--opset", 11), "opset 11"),
        (("export", saved, "-o", out, "--opset", 18), "opset 18"),
        (("export", saved, "-o", out, "--batch", 0), "batch 0"),
        (("export", saved, "-o", out, "--image-size", 30), "16x16"),
        (("export", saved, "-o", out, "--validation", tmp_path / "no"), f"{tmp_path / 'no'}"),
        (("export", saved, "-o", tmp_path / "no" / "a.pt2"), f"{tmp_path / 'no'}"),
        (("export", saved, "-o", out, "--dense", "--keep-ratio", 0.5), "--keep-ratio 0.5"),
        (("export", saved, "-o", out, "--dense", "--tile", 4), "--tile 4"),
        (("export", saved, "-o", out, "--tile", 0), "got 0"),
        (("export", saved, "-o", out, "--precision", "int8"), "--calibrate"),
        (("export", saved, "-o", out, "--precision", "int8", "--calibrate", folder), "a.pt2"),
        (("export", saved, "-o", out, "--calibrate", folder), f"--calibrate {folder}"),
        (("export", saved, "-o", out, "--max-drop", 0.5), "--max-drop 0.5"),
        (("export", saved, "-o", out, "--calibration-images", 9), "--calibration-images 9"),
        (("export", file, "-o", out), f"{file}"),
        (("export", "-o", out), "--model"),
        (("export", saved, "--model", saved, "-o", out), f"--model {saved}"),
        (("eval", folder, "--model", out), "a.pt2"),
        ((*of_file, "--keep-ratio", 0.5), "--keep-ratio 0.5"),
        ((*of_file, "--tile", 4), "--tile 4"),
        ((*of_file, "--image-size", 128), "64x80 pixels"),
        ((*of_file, "--precision", "bf16"), "bf16"),
        ((*of_file, "--checkpoint", "a.pth"), "--checkpoint a.pth"),
        ((*of_file, "--compare-dense"), "--dense-checkpoint"),
        ((*of_file, "--dense"), "--dense-checkpoint"),
    ):
        assert command(*words) == 2
        assert said in one_line(), words
    assert not list(tmp_path.iterdir())
