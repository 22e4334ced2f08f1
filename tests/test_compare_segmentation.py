"""`dynamicvit compare` of segmentation models: mIoU and pixels that agree, at the same MACs."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torchmetrics")

from dynamicvit import InputError, Segmenter, count_macs, segmenter, sparsify
from dynamicvit.cli.compare_tables import results_table
from dynamicvit.comparison import compare, measuring
from dynamicvit.evaluation import evaluate_segmentation
from dynamicvit.methods import at_macs
from dynamicvit.plots.comparison import save_comparison
from families import DEIT, randomize
from masks import NAMES, write_scenes


def dense() -> Segmenter:
    model = segmenter(DEIT.backbone(img_size=(64, 64)), 3)
    randomize(model.decode_head, 5)
    model.set_class_names(NAMES)
    return model.eval()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 4, size=(70, 64))


HOW: dict[str, Any] = {"timing": False, "workers": 0, "macs": (0.7,)}


def test_methods_at_the_same_macs(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    how = {**HOW, "methods": "tome,random", "train": False}
    lines = compare(dense(), scenes, out, **how)
    first, tome, chance = sorted(lines, key=lambda line: ["dense", "tome", "random"].index(
        line.method.removesuffix("-merged").removesuffix("-removed")
    ))  # fmt: skip
    model = at_macs("tome", dense(), 0.7).eval()
    assert isinstance(model, Segmenter)
    expected = evaluate_segmentation(model, scenes, dense=dense(), workers=0)
    assert tome.miou == pytest.approx(expected.miou)
    assert tome.agreement == pytest.approx(expected.agreement)
    assert tome.gmacs == pytest.approx(count_macs(model) / 1e9)
    assert first.agreement == 1.0
    assert first.miou == pytest.approx(evaluate_segmentation(dense(), scenes, workers=0).miou)
    assert (chance.top1, chance.divergence) == (None, None)
    with open(out / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["miou"]) == pytest.approx(first.miou, abs=1e-4)
    assert [str(column.header).split("\n")[0] for column in results_table(lines).columns][1] == (
        "mIoU"
    )
    monkeypatch.setattr("dynamicvit.plots.style.save", lambda *_: None)
    assert "accuracy_over_gmacs" in save_comparison(lines, out)
    monkeypatch.setattr(measuring, "evaluate_segmentation", None)
    assert compare(dense(), scenes, out, **how) == lines


def test_without_masks_pixels_are_compared(scenes: Path, tmp_path: Path) -> None:
    lines = compare(
        dense(), scenes / "images", tmp_path / "out", methods="tome", train=False, **HOW
    )
    assert all(line.score is None for line in lines)
    assert 0 < lines[-1].agreement <= 1


def test_rows_are_fine_tuned_by_the_recipe(scenes: Path, tmp_path: Path) -> None:
    trained = sparsify(dense(), 0.6, method="tome")
    trained.save_pretrained(tmp_path / "trained")
    lines = compare(
        dense(), scenes, tmp_path / "out", methods="dynamicvit", validation=scenes, images=4,
        overrides=["batch_size=2"], trained=[tmp_path / "trained"], **HOW,
    )  # fmt: skip
    fine_tuned = next(line for line in lines if line.trained)
    assert (fine_tuned.images, fine_tuned.seeds) == (4, 1)
    assert fine_tuned.miou is not None
    given = next(line for line in lines if line.given)
    expected = evaluate_segmentation(trained.eval(), scenes, workers=0)  # type: ignore[arg-type]
    assert given.miou == pytest.approx(expected.miou)


def test_what_means_nothing_is_refused(
    scenes: Path, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    DEIT.sparse(img_size=(64, 64)).save_pretrained(tmp_path / "classifier")
    dense().save_pretrained(tmp_path / "dense")
    out = tmp_path / "out"
    for words, message in (
        (("-m", tmp_path / "classifier", "--data", scenes), "the model classifies images"),
        (("-m", tmp_path / "dense", "--data", scenes, "--crop-pct", 0.9), "crop_pct 0.9"),
        (("-m", tmp_path / "dense", "--data", scenes, "--recipe", "small_data"), "small_data"),
        (("-m", tmp_path / "dense", "--data", scenes, "--methods", "narrow"), "narrow"),
        (("-m", tmp_path / "dense", "--data", scenes, "--class-map", "imagenet"), "class map"),
    ):
        more = ("--validation", scenes, "-o", out, "--workers", 0)
        more += () if "--methods" in words else ("--methods", "tome")
        assert command("compare", *words, *more) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="is for classification"):
        compare(dense(), scenes, out, validation=scenes, trained=[tmp_path / "classifier"], **HOW)
