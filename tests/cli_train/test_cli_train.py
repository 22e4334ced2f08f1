"""`dynamicvit train`: what it leaves behind when all goes well."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dynamicvit import DynamicViT
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.evaluation.accuracy import EvaluationResult
from dynamicvit.training import loop, run
from dynamicvit.training.held_out import HeldOut
from memory import TINY
from pictures import write_image
from run_folders import WRITTEN, files_in

Main = Callable[..., int]

# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_a_model_that_the_others_read(
    saved: Path,
    folder: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "runs" / "first"
    assert main("train", folder, "-m", saved, "-o", out, *TINY, "--set", "keep_ratio=0.5") == 0
    said = capsys.readouterr()
    assert "trained on 8 images (2 whole steps)" in said.out
    assert "patches kept in training: 50.0 / 25.0 / 10.0 %" in said.out
    assert said.err == ""
    assert files_in(out) == WRITTEN
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    report = json.loads((out / "report.json").read_text())
    assert report["training"]["images"] == 8
    assert report["keep_ratios"] == [0.5, 0.25, 0.125]

    model = DynamicViT.from_pretrained(out)
    assert model.keep_ratio == 0.5
    before = DynamicViT.from_pretrained(saved).state_dict()
    after = model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)

    assert main("eval", folder, "-m", out, "--json", "-") == 0
    numbers = json.loads(capsys.readouterr().out)
    data = ImageData(folder, transform=eval_transform(model))
    with torch.no_grad():
        answers = model(torch.stack([data[index].image for index in range(14)])).argmax(1)
    expected = float((answers == torch.from_numpy(data.labels)).float().mean())
    assert numbers["top1"] == pytest.approx(expected)


def test_labels_are_not_needed(saved: Path, flat: Path, folder: Path, tmp_path: Path, main: Main):
    write_image(folder / "beside.png", 9)  # folders that are no classes don't matter either
    out = tmp_path / "out"
    more = ("--unlabeled", folder, "--set", "images=20", "--set", "batch_size=10")
    assert main("train", flat, "-m", saved, "-o", out, *more) == 0
    assert json.loads((out / "report.json").read_text())["training"]["images"] == 20


def test_images_with_and_without_labels_are_mixed(
    saved: Path, flat: Path, folder: Path, tmp_path: Path, main: Main
):
    out = tmp_path / "out"
    more = (
        "--unlabeled",
        flat,
        "--recipe",
        "deit_small",
        "--set",
        "epochs=1",
        "--set",
        "ema=null",
    )
    assert main("train", folder, "-m", saved, "-o", out, *more, "--set", "batch_size=4") == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(step["losses"]["distillation"] > 0 for step in log)
    assert any(step["losses"]["classification"] > 0 for step in log)


def test_labels_are_used(
    saved: Path, folder: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all that the paper's recipe has: mixup, averaged weights; and dropped paths."""
    out = tmp_path / "out"
    paper = ("--recipe", "deit_small", *TINY, "--set", "drop_path=0.2", "--precision", "bf16")
    assert main("train", folder, "-m", saved, "-o", out, *paper) == 0
    assert "class map: the 7 class folders in natural order" in capsys.readouterr().out
    for line in (out / "log.jsonl").read_text().splitlines():
        assert json.loads(line)["losses"]["classification"] > 0
    assert "drop_path: 0.2" in (out / "recipe.yaml").read_text()
    DynamicViT.from_pretrained(out)


def test_a_part_held_out_is_evaluated_and_not_trained_on(
    saved: Path,
    folder: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained_on: list[str] = []

    def fit(model, loader, *arguments, **options):
        trained_on.extend(data.path(i) for data in loader.data.datasets for i in range(len(data)))
        return loop.fit(model, loader, *arguments, **options)

    monkeypatch.setattr(run, "fit", fit)
    out = tmp_path / "out"
    assert main("train", folder, "-m", saved, "-o", out, *TINY, "--set", "hold_out=0.2") == 0
    said = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    top1, best = report["held_out"]["top1"], report["training"]["best"]
    assert f"held-out top-1 {100 * top1:.2f} % after step 2\n" in said
    held_out = report["held_out"]["images"]
    dense = json.loads((out / "report.json").read_text())["dense_held_out"]["top1"]
    both = f"dense {100 * dense:.2f} %, sparse {100 * top1:.2f} %"
    assert f"held-out top-1: {both}, of {held_out} images (dense: as it was given)\n" in said
    assert report["held_out"]["labeled"] == held_out > 0
    assert best == {"measure": "top1", "value": top1, "step": 2}
    assert len(set(trained_on)) == 14 - held_out


def test_a_part_held_out_without_labels_is_judged_by_the_dense_network(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (*TINY, "--set", "hold_out=0.5", "--set", "learning_rate=1e-9")
    assert main("train", flat, "-m", saved, "-o", out, *words, "--set", "keep_ratio=1") == 0
    said = capsys.readouterr().out
    assert "held-out agreement with the dense model 100.00 % after step 1\n" in said
    assert "held-out agreement with the dense model 100.00 % of 4 images\n" in said
    report = json.loads((out / "report.json").read_text())
    assert (report["held_out"]["agreement"], report["held_out"]["top1"]) == (1.0, None)
    assert report["training"]["best"] == {"measure": "agreement", "value": 1.0, "step": 1}


def test_where_the_end_is_not_the_best_it_is_said(
    saved: Path,
    flat: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [0.75, 0.25]
    result = EvaluationResult(
        None, None, None, None, None, images=4, labeled=0, skipped=(), seconds=1.0
    )
    monkeypatch.setattr(
        HeldOut, "evaluate", lambda *_: dataclasses.replace(result, agreement=shares.pop(0))
    )
    words = (*TINY, "--set", "hold_out=0.5")
    assert main("train", flat, "-m", saved, "-o", tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    assert "it was 75.00 % after step 1: checkpoint.best.pt\n" in said
