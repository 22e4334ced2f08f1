"""What `dynamicvit train` shows of a run: lines, TensorBoard, curves, and what went wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynamicvit.cli import train_view
from dynamicvit.cli.console import LineNowAndThen
from dynamicvit.data import images as data_images
from dynamicvit.training.checkpoint_file import load_checkpoint
from families import DEIT

Main = Callable[..., int]


@pytest.fixture
def run(command: Main, tmp_path: Path) -> Callable[..., int]:
    """Train a tiny model on eight images, four a step, into ``out``; gives the exit code."""
    DEIT.sparse().save_pretrained(tmp_path / "saved")
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("RGB", (80, 64), (30 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    words = (tmp_path / "images", "-m", tmp_path / "saved", "-o", tmp_path / "out")
    return partial(command, "train", *words, "--workers", "0", "--set", "batch_size=4")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let so many of the images become NaN on their way into the network."""

    def prepare(images: int) -> None:
        real = data_images.train_transform

        def transform(*arguments, **options):
            inner = real(*arguments, **options)

            def poisoned(image: Image.Image) -> torch.Tensor:
                is_bad = image.getpixel((0, 0))[0] < 30 * images
                return inner(image) * (torch.nan if is_bad else 1.0)

            return poisoned

        monkeypatch.setattr(data_images, "train_transform", transform)

    return prepare


@pytest.mark.curves
def test_every_step_is_in_the_log_in_tensorboard_and_in_the_picture(
    run: Callable[..., int], tmp_path: Path
) -> None:
    assert run("--set", "images=16") == 0
    out = tmp_path / "out"
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    for name, expected in (
        ("loss/total", [step["losses"]["total"] for step in steps]),
        ("loss/guidance", [step["losses"]["guidance"] for step in steps]),
        ("kept_stage_3/sampled", [step["kept"][2] for step in steps]),
        ("kept_stage_1/at_inference", [step["kept_at_inference"][0] for step in steps]),
        ("learning_rate/predictors", [step["learning_rates"]["predictors"] for step in steps]),
        ("run/gradient_norm", [step["gradient_norm"] for step in steps]),
    ):
        events = board.Scalars(name)
        assert [event.step for event in events] == [0, 1, 2, 3]
        assert [event.value for event in events] == pytest.approx(expected), name
    assert "kept_stage_1/by_score" not in board.Tags()["scalars"]  # only their order counts
    assert min(imread(out / "curves.png").shape[:2]) > 300


def test_info_says_how_it_was_trained(
    run: Callable[..., int], command: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--set", "images=8") == 0
    out = tmp_path / "out"
    capsys.readouterr()
    assert command("info", out) == 0
    said = "8 images in 2 steps, taught by the dense model"
    assert f"{said}\n" in capsys.readouterr().out
    any_budget = ("--set", "images=8", "--set", "budgets=[0.4, 0.9]", "--force")
    assert run(*any_budget) == 0
    capsys.readouterr()
    assert command("info", out) == 0
    assert f"{said}, at keep ratios from 0.4 to 0.9\n" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    for odd in (
        {"training": {"images": "x"}},
        {**report, "held_out": [1]},
        [],
        {"teacher": 1},
        {**report, "budgets": [1]},
    ):
        (out / "report.json").write_text(json.dumps(odd))
        assert command("info", out) == 0
        assert "taught by" not in capsys.readouterr().out


def test_a_line_says_how_far_how_fast_and_how_long(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = partial(LineNowAndThen, seconds=0.0)
    monkeypatch.setattr(train_view, "LineNowAndThen", at_once)
    assert run("--set", "images=16") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    pattern = r"step (\d) of 4, [\d.]+ images/s loss [\d.]+ kept [\d./]+, (\d:\d\d:\d\d) left"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert [match[1] for match in found if match] == ["1", "2", "3", "4"]
    assert found[-1] is not None
    assert found[-1][2] == "0:00:00"


def test_a_step_that_is_not_finite_is_named_and_counted(
    run: Callable[..., int],
    poison: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    poison(1)
    # Mixed, its partner in the batch would not be finite either.
    assert run("--set", "images=16", "--set", "augment.mixup_prob=0") == 0
    assert "left out 2 steps that were not finite" in capsys.readouterr().out
    bad = tmp_path / "images" / "0.png"
    assert caplog.text.count(f"the logits of 1 of its 4 images are not: {bad}\n") == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["training"]["bad_steps"] == 2


def test_ten_in_a_row_end_the_run_in_one_line_and_keep_it(
    run: Callable[..., int],
    poison: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(8)
    out = tmp_path / "out"
    assert run("--set", "images=80") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(
        rf"dynamicvit: .*guidance not finite 10 steps in a row, up to step 9: {out} keeps the run "
        r"as it was before them; try full precision \(fp32\), a lower learning_rate, or clip_grad",
        error,
    )
    weights = load_checkpoint(out / "checkpoint.pt")["model"]
    before = DEIT.sparse().state_dict()
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert (out / "curves.png").exists()
    assert not (out / "model.safetensors").exists()


def test_a_run_without_a_checkpoint_leaves_nothing_of_tensorboards(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the first step an image turns up that --strict refuses."""
    written: list[bool] = []

    class Breaking(LineNowAndThen):
        def say(self, line: str) -> None:
            written.append((tmp_path / "out" / "log.jsonl").exists())
            for path in (tmp_path / "images").iterdir():
                path.write_bytes(b"no image")

    monkeypatch.setattr(train_view, "LineNowAndThen", Breaking)
    assert run("--strict", "--set", "images=16") == 2
    assert "can't be read as an image" in capsys.readouterr().err
    assert written == [True]
    assert not (tmp_path / "out").exists()
