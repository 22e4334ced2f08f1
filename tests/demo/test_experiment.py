"""The demo's experiment: honest splits, the shipped weights, the table and the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynamicvit.demo import experiment
from dynamicvit.demo.dense import DENSE_WEIGHTS, load_dense
from dynamicvit.demo.experiment import Row, SceneLoader, Size
from dynamicvit.demo.scenes import Scenes
from dynamicvit.training import Recipe

TINY = Size(train_scenes=64, score_scenes=10, bench_seconds=0.2, random_ratios=(0.5,))


def test_the_shipped_weights_are_small_and_read_digits_never_trained_on() -> None:
    assert DENSE_WEIGHTS.stat().st_size < 5e6
    model = load_dense()
    assert sum(parameter.numel() for parameter in model.parameters()) < 2e6
    scenes = Scenes("score", seed=7).batch(range(60))
    with torch.inference_mode():
        right = (model(scenes.images).argmax(dim=1) == scenes.labels).float().mean()
    assert right > 0.85


def test_no_training_scene_comes_twice_and_a_run_can_go_on() -> None:
    loader = SceneLoader(Scenes("train", seed=1), count=32, batch_size=8)
    assert len(loader) == 4
    first = [batch.images for batch in loader]
    loader.set_epoch(1)
    second = [batch.images for batch in loader]
    assert not any(torch.equal(a, b) for a in first for b in second)
    loader.set_epoch(0, start=2)
    rest = [batch.images for batch in loader]
    assert len(rest) == 2
    assert torch.equal(rest[0], first[2])


def row(name: str, ratio: float | None, top1: float, digit: float, background: float) -> Row:
    return Row(name, ratio, top1, 0.2, None if ratio is None else 1.3, digit, background)


GOOD = [
    row("dense", None, 0.94, 1.0, 1.0),
    row("dynamicvit", 0.9, 0.94, 1.0, 0.7),
    row("dynamicvit", 0.7, 0.935, 0.9, 0.3),
    row("dynamicvit", 0.5, 0.90, 0.8, 0.1),
    row("random", 0.7, 0.85, 0.34, 0.34),
    row("random", 0.5, 0.70, 0.12, 0.12),
]


@pytest.mark.parametrize(
    ("place", "change", "numbers"),
    [
        (0, {}, []),
        (0, {"top1": 0.80}, ["80.0 %"]),
        (2, {"top1": 0.90}, ["4.0"]),
        (3, {"top1": 0.72}, ["2.0"]),
        (3, {"digit_kept": 0.15}, ["1.5"]),
    ],
)
def test_shortcomings(place: int, change: dict[str, float], numbers: list[str]) -> None:
    rows = list(GOOD)
    rows[place] = replace(rows[place], **change)
    found = experiment.shortcomings(rows)
    assert len(found) == len(numbers)
    assert all(number in line for number, line in zip(numbers, found, strict=True))


def test_the_command_prints_every_row_and_draws_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], capsys
) -> None:
    threads: list[object] = []

    def bench(*_: object, **options: object) -> list[object]:
        threads.append(options["threads"])
        return [SimpleNamespace(speedup=SimpleNamespace(median=1.23))]

    def recipe(*how: Any) -> Recipe:
        return whole(*how).model_copy(update={"images": 8, "batch_size": 8})  # one small step

    whole = experiment.recipe
    monkeypatch.setattr(experiment, "recipe", recipe)
    monkeypatch.setattr(experiment, "bench", bench)
    monkeypatch.setattr(experiment, "SHORT", TINY)
    assert command("demo", "-o", tmp_path, "--threads", "1") == 0
    said = capsys.readouterr().out
    for text in ("dense", "dynamicvit", "random", "seed 0", "1.23 "):
        assert text in said
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert threads == [1] * (len(experiment.RATIOS) + len(TINY.random_ratios))
