"""`dynamicvit predict` of a segmentation model: a mask for each image, of its size and name."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dynamicvit
from dynamicvit import InputError, Segmenter, segmenter, sparsify
from dynamicvit.core.segmenter import post_process_semantic_segmentation
from dynamicvit.data import ImageData, MaskData, joint_eval_transform
from dynamicvit.data.mask_files import class_colors, write_mask
from dynamicvit.evaluation import PredictResult, predictions
from dynamicvit.evaluation.answers import mask_names
from dynamicvit.evaluation.windows import sliding_windows
from families import DEIT, randomize
from masks import NAMES, write_scenes
from pictures import truncated_jpeg, write_image

Main = Callable[..., int]


@pytest.fixture(scope="module")
def model() -> Segmenter:
    made = sparsify(segmenter(DEIT.backbone(img_size=(32, 32)), 3), 0.5, method="tome")
    randomize(made.decode_head, 5)
    made.set_class_names(NAMES)
    assert isinstance(made, Segmenter)
    return made.eval()


@pytest.fixture(scope="module")
def saved(model: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", 4, "test")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def indices(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("place", ["{}@test", "{}/images/test"])
def test_a_mask_is_that_of_sliding_windows(
    place: str, model: Segmenter, saved: Path, scenes: Path, tmp_path: Path, command: Main
) -> None:
    out = tmp_path / "out"
    source = place.format(scenes)
    assert command("predict", source, "-m", saved, "-o", out, "--workers", 0) == 0
    data = MaskData(f"{scenes}@test").with_joint_transform(joint_eval_transform(model))
    for index in range(len(data)):
        sample = data[index]
        assert not isinstance(sample.label if hasattr(sample, "label") else 0, int)
        with torch.no_grad():
            logits = sliding_windows(model, sample.image, (32, 32))[None]  # type: ignore[union-attr]
        [expected] = post_process_semantic_segmentation(logits, [(40, 56)])
        assert np.array_equal(indices(out / f"{index}.png"), expected)
    assert [row["mask"] for row in rows_of(out)] == [f"{index}.png" for index in range(4)]
    assert not list(out.glob("*.part"))


def test_masks_can_be_read_as_masks(
    model: Segmenter, saved: Path, scenes: Path, tmp_path: Path
) -> None:
    """What a model says, taken for the truth, is wholly right."""
    out = tmp_path / "again" / "masks"
    dynamicvit.predict(saved, scenes / "images" / "test", out, workers=0)
    (out / "predictions.csv").unlink()
    (out.parent / "images").symlink_to(scenes / "images" / "test")
    pytest.importorskip("torchmetrics")
    assert dynamicvit.evaluate_segmentation(model, out.parent, workers=0).miou == 1.0


def test_unreadable_images_have_a_row_and_a_run_resumes(
    saved: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = scenes / "images" / "test", tmp_path / "out"
    truncated_jpeg(images / "1b.jpg")
    arguments = {"model": saved, "images": images, "output": out, "workers": 0}

    def stop(done: int) -> None:
        if len(list(out.glob("*.png"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dynamicvit.predict(progress=stop, **arguments)
    written = (out / "0.png").stat().st_mtime_ns
    found = dynamicvit.predict(**arguments)
    assert isinstance(found, PredictResult)
    assert found.resumed in (2, 3)
    assert (out / "0.png").stat().st_mtime_ns == written
    assert found.unreadable == (str(images / "1b.jpg"),)
    rows = rows_of(out)
    assert [row["mask"] for row in rows] == ["0.png", "1.png", "", "2.png", "3.png"]
    assert [bool(row["error"]) for row in rows] == [False, False, True, False, False]


def test_names_are_the_images_below_their_source(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/x.jpg", "X.png", "b.c.png"):
        write_image(tmp_path / "one" / name, 9, size=(8, 8))
    write_image(tmp_path / "two" / "x.png", 9, size=(8, 8))
    data = [ImageData(tmp_path / name, labeled=False) for name in ("one", "two")]
    found = mask_names(data)
    assert sorted(found.values()) == ["X.png", "a/x-2.png", "a/x.png", "b.c.png", "x-2.png"]


@pytest.mark.parametrize("first", [0, 1])
def test_a_palette_of_the_classes_colors(first: int, tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", torch.tensor([[0, 1], [2, 21]]), first=first)
    with Image.open(tmp_path / "mask.png") as image:
        assert np.array_equal(np.array(image), np.array([[0, 1], [2, 21]]) + first)
        shown = np.array(image.convert("RGB"))
    assert np.array_equal(shown[0, 1], class_colors(2)[1])
    assert np.array_equal(shown[1, 0], class_colors(3)[2])
    assert np.array_equal(shown[1, 1], class_colors(22)[1])
    assert shown[0, 0].any() == bool(first)


def test_more_classes_than_a_byte_has(tmp_path: Path) -> None:
    write_mask(tmp_path / "mask.png", torch.tensor([[0, 300]]))
    assert indices(tmp_path / "mask.png").tolist() == [[0, 300]]


def test_masks_that_count_from_one(model: Segmenter, scenes: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    shifted = model.like(model.bound, model.schedule, model.methods).eval()
    shifted.labels = replace(model.labels, reduce_labels=True)
    images = scenes / "images" / "test"
    for name, each in (("plain", model), ("shifted", shifted)):
        predictions.predict(each, images, tmp_path / name, workers=0)
    assert np.array_equal(
        indices(tmp_path / "plain" / "0.png") + 1, indices(tmp_path / "shifted" / "0.png")
    )


def test_what_does_not_fit_is_refused(
    saved: Path, scenes: Path, tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    images = scenes / "images" / "test"
    classifier = tmp_path / "classifier"
    DEIT.sparse(img_size=(32, 32)).save_pretrained(classifier)
    for words, message in (
        ((images, "-m", saved, "-o", tmp_path / "a.csv"), "give a folder"),
        ((images, "-m", saved, "-o", tmp_path / "out", "--crop-pct", 0.9), "crop_pct 0.9"),
        ((images, "-m", classifier, "-o", tmp_path / "out"), "names no format"),
        ((images, "-m", classifier, "-o", tmp_path / "a.csv", "--stride", 8), "stride 8"),
    ):
        assert command("predict", *words, "--workers", 0) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="give a folder as output"):
        dynamicvit.predict(saved, images)
