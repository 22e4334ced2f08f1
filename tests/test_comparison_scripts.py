"""The scripts around the comparison: what they run, and what their numbers are."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, Schedule
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.methods import ClassAttention, StaticRanking
from families import DEIT

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module


def test_the_whole_comparison_is_three_commands(script: Any, monkeypatch) -> None:
    calls: list[list[str]] = []
    codes = iter([0, 3])

    def run(command: list[str], check: bool) -> Any:
        calls.append(command)
        return subprocess.CompletedProcess(command, next(codes))

    comparison = script("comparison")
    monkeypatch.setattr(comparison.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["comparison.py", "DATA", "VAL", "--crop-pct", "0.875"])
    with pytest.raises(SystemExit, match="3"):
        comparison.main()
    assert len(calls) == 2, "a part that fails ends it"
    for command, part in zip(calls, comparison.PARTS, strict=False):
        assert command[1:4] == ["-m", "dynamicvit", "compare"]
        assert command[-2:] == ["--crop-pct", "0.875"]
        words = " ".join(command)
        assert "--data DATA --validation VAL" in words
        assert " ".join(part) in words


def test_how_often_a_place_is_kept(script: Any) -> None:
    """Of fixed places: always or never; and so many as the schedule says."""
    ranking = StaticRanking(DEIT.grid)
    ranking.places.data = torch.arange(20.0) / 20
    model = DynamicViT(DEIT.backbone(), Schedule((1,), (0.25,)), [ranking]).eval()
    unlabeled = torch.full((2,), UNLABELED)
    batches = [Batch(DEIT.images(2, seed), unlabeled) for seed in range(2)]
    shares, images = script("what_is_learned").kept_by_position(model, batches)
    assert images == 4
    assert shares[0].shape == DEIT.grid
    assert torch.equal(shares[0].flatten(), torch.tensor([0.0] * 15 + [1.0] * 5))


def test_pictures_of_pages_show_their_tables(script: Any, tmp_path: Path) -> None:
    docs = SCRIPTS.parent / "docs"
    tables = script("draw_tables")
    for row in tables.speeds(docs / "performance.md"):
        # Each a median of ratios: of the same rounds, so all but equal.
        assert row.pruned / row.dense == pytest.approx(row.speedup.median, rel=0.1)
        assert row.speedup.low <= row.speedup.median <= row.speedup.high
    steps = tables.steps(docs / "quantization.md")
    assert {step["batch"] for step in steps} == set(tables.BATCHES)
    assert all(step["lower"] <= step["speed_up"] <= step["upper"] for step in steps)
    tables.draw_all(docs, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"speed.png", "staircase.png"}


def test_what_is_left_of_the_scenes(script: Any, monkeypatch) -> None:
    learned = script("what_is_learned")
    trained: list[type] = []
    monkeypatch.setattr(
        learned.experiment, "fine_tune", lambda model, *_: trained.append(type(model.predictors[0]))
    )
    size = learned.experiment.Size(
        train_scenes=64, score_scenes=4, bench_seconds=0.1, random_ratios=(0.7,)
    )
    rows = learned.scene_rows(size, seed=0)
    assert trained[1] is ClassAttention
    assert [row["method"] for row in rows] == [
        name for name in ("dynamicvit", "class-attention", "random") for _ in range(3)
    ]
    for row in rows:
        assert 0 <= row["digit_kept"] <= 1
        assert 0 <= row["others_kept"] <= 1
    most = [row["others_kept"] for row in rows if row["method"] == "random"]
    assert most == sorted(most, reverse=True), "fewer with a smaller ratio"
