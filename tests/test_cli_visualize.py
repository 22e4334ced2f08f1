"""`dynamicvit visualize`: pictures, printed classes, and what bad input leaves behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from dynamicvit import DynamicViT, sparsify
from dynamicvit.cli import (
    app,
    inference,
    visualize,  # noqa: F401 (registers the command)
)

Main = Callable[..., int]


@pytest.fixture
def model() -> DynamicViT:
    torch.manual_seed(0)
    backbone = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=7
    )
    model = sparsify(backbone, keep_ratio=0.7, method="dynamicvit")
    for predictor in model.predictors:
        torch.nn.init.normal_(predictor.mlp[-1].bias)  # as if trained
    return model


@pytest.fixture
def loaded(model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model in place of any other."""
    monkeypatch.setattr(inference, "load", lambda *_, **__: model)


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures with nothing on them."""
    monkeypatch.setattr("dynamicvit.plots.visualization.draw", lambda *_, **__: Figure((1, 1)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs: a/cat.jpg, b/cat.png, and dog.jpg above them."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "photos"
    for name in ("a/cat.jpg", "b/cat.png", "dog.jpg"):
        pixels = torch.randint(256, (40, 56, 3), generator=generator, dtype=torch.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / name)
    return folder


@pytest.fixture
def main(command: Main) -> Main:
    """The command, with what every call has; gives the exit code."""
    return lambda *arguments: command("visualize", *arguments)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_picture_and_the_classes_by_name(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: DynamicViT
) -> None:
    schedule = replace(model.schedule, policy="merged")
    merging = DynamicViT(model.backbone, schedule, model.predictors)
    monkeypatch.setattr(inference, "load", lambda *_, **__: merging)
    with torch.no_grad():
        model.backbone.head.bias[3] = 50
    dense = torch.zeros(1, 7).index_fill(1, torch.tensor([5]), 50.0)
    monkeypatch.setattr(merging, "forward_dense", lambda _: SimpleNamespace(logits=dense))
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["visualize", str(photos / "dog.jpg"), "--model", "tiny", "-o", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert files_in(out) == ["dog_dynamicvit.png"]
    with Image.open(out / "dog_dynamicvit.png") as picture:
        picture.load()
    lines = result.output.splitlines()
    assert lines[0] == f"{photos / 'dog.jpg'} -> {out / 'dog_dynamicvit.png'}"
    # floor of 16 x 0.7, 0.49, 0.343
    assert lines[1] == "  kept 11, 7, 5 of 16 patches (69, 44, 31 %), the rest merged"
    assert lines[2] == "  100.0 %  class 3"
    assert lines[7:] == ["  dense: class 5 (100.0 %)"]
    model.backbone.reset_classifier(0)
    monkeypatch.undo()
    monkeypatch.setattr(inference, "load", lambda *_, **__: model)
    words = ["visualize", str(photos / "dog.jpg"), "--model", "tiny", "-o", str(out)]
    assert len(CliRunner().invoke(app, words).output.splitlines()) == 2  # without classes


@pytest.mark.usefixtures("loaded")
def test_image_size_and_crop_are_what_the_model_sees(
    photos: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (photos / "dog.jpg", "-m", "tiny", "-o", tmp_path / "out")
    for wrong in (("--image-size", 30), ("--image-size", 0), ("--crop-pct", 0)):
        assert main(*words, *wrong) == 2
        assert str(wrong[1]) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(*words, "--image-size", 64) == 0
    assert "of 64 patches" in capsys.readouterr().out
    assert main(*words, "--crop-pct", 1) == 0
    narrow = (tmp_path / "out" / "dog_dynamicvit.png").read_bytes()
    assert main(*words, "--crop-pct", 0.5) == 0
    assert (tmp_path / "out" / "dog_dynamicvit.png").read_bytes() != narrow


@pytest.mark.usefixtures("loaded", "blank")
def test_no_input_is_overwritten_and_own_pictures_are_no_input(
    photos: Path, tmp_path: Path, main: Main
) -> None:
    # A photograph that carries the name of a picture, in the folder of the pictures.
    taken = photos / "dog_dynamicvit.png"
    (photos / "b" / "cat.png").rename(taken)
    before = taken.read_bytes()
    assert main(photos / "dog.jpg", taken, "-m", "tiny", "-o", photos) == 0
    assert taken.read_bytes() == before
    pictures = ["dog_dynamicvit-2.png", "dog_dynamicvit_dynamicvit.png"]
    assert [file for file in files_in(photos) if file in pictures] == pictures
    count = len(files_in(photos))
    taken.unlink()
    # A second run over the folder draws the photographs once, not the pictures of the first.
    assert main(photos, photos / "a" / ".." / "dog.jpg", "-m", "tiny", "-o", photos) == 0
    assert len(files_in(photos)) == count - 1 + len(["cat_dynamicvit.png", "dog_dynamicvit.png"])


@pytest.mark.usefixtures("loaded", "blank")
def test_an_unreadable_image_is_named_and_the_others_go_on(
    photos: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, text = photos / "a" / "cat.jpg", photos / "text.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    text.write_text("no image")
    missing = photos / "nowhere.png"
    (photos / "c").mkdir()
    (photos / "dog.jpg").rename(photos / "c" / "cat.jpg")
    out = tmp_path / "out"
    assert main(photos, missing, "-m", "tiny", "-o", out) == 2
    assert files_in(out) == ["cat_dynamicvit-2.png", "cat_dynamicvit-3.png"]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3  # nothing on untrained prediction modules
    for path, error in zip((broken, text, missing), errors, strict=True):
        assert error.startswith(f"dynamicvit: {path} ")


def test_bad_places_are_refused_before_any_work(
    photos: Path,
    tmp_path: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object, **__: object) -> DynamicViT:
        raise AssertionError("nothing should be loaded")

    monkeypatch.setattr(inference, "load", load)
    file = photos / "dog.jpg"
    before = files_in(tmp_path)

    def error(*arguments: object) -> str:
        assert main(*arguments, "-m", "tiny") == 2
        line = capsys.readouterr().err
        assert line.startswith("dynamicvit: ")
        assert line.count("\n") == 1
        return line

    assert f"{file} is not a folder" in error(file, "-o", file)
    assert f"{file} is not a folder" in error(file, "-o", file / "below")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}" in error(tmp_path / "empty", "-o", tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert "permission" in error(file, "-o", tmp_path / "new" / "out")
    assert files_in(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_with_a_real_model_and_its_options(
    photos: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("-m", "deit_tiny_patch16_224", "--no-pretrained", "--keep-ratio", 0.5, "-o", out)
    words += ("--method", "dynamicvit")
    assert main(photos / "dog.jpg", *words) == 0
    printed = capsys.readouterr()
    assert "kept 98, 49, 24 of 196 patches" in printed.out
    assert "untrained" in printed.err
    assert files_in(out) == ["dog_dynamicvit.png"]
    assert main(photos, "-m", "deti", "-o", tmp_path / "none") == 2
    assert "deti" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
