"""The demo's experiment: honest splits, the shipped weights, the table and the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dynamicvit.demo import experiment
from dynamicvit.demo.dense import DENSE_WEIGHTS, load_dense
from dynamicvit.demo.experiment import Row, SceneLoader, Size
from dynamicvit.demo.scenes import Scenes

TINY = Size(train_scenes=64, score_scenes=100, bench_seconds=0.2)


def test_the_shipped_weights_are_small_and_read_digits_never_trained_on() -> None:
    assert DENSE_WEIGHTS.stat().st_size < 5e6
    model = load_dense()
    assert sum(parameter.numel() for parameter in model.parameters()) < 2e6
    scenes = Scenes("score", seed=7).batch(0, 300)
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


def test_random_scores_keep_as_many_tokens_by_chance() -> None:
    model = experiment.sparse_model("random").eval()
    images = Scenes("score").batch(0, 64).images
    with torch.inference_mode():
        kept = model.forward_pruned(images).kept
    assert [int(each[0].sum()) for each in kept] == list(model.schedule.kept(144))
    share = kept[-1].float().mean(dim=0)  # no patch is preferred
    assert share.max() < 0.343 + 0.3
    assert not torch.equal(kept[0][0], kept[0][1])


def row(name: str, ratio: float | None, top1: float, digit: float, background: float) -> Row:
    return Row(name, ratio, top1, 0.2, None if ratio is None else 1.3, digit, background)


GOOD = [
    row("dense", None, 0.94, 1.0, 1.0),
    row("DynamicViT", 0.9, 0.94, 1.0, 0.7),
    row("DynamicViT", 0.7, 0.935, 0.9, 0.3),
    row("DynamicViT", 0.5, 0.90, 0.8, 0.1),
    row("random", 0.7, 0.85, 0.34, 0.34),
    row("random", 0.5, 0.70, 0.12, 0.12),
]


def test_good_rows_fall_short_of_nothing() -> None:
    assert experiment.shortcomings(GOOD) == []


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, {"top1": 0.80}, "dense network is right on 80.0%"),
        (2, {"top1": 0.90}, "at 0.7 it loses 4.0 points"),
        (3, {"top1": 0.72}, "at 0.5 it is 2.0 points above random"),
        (3, {"digit_kept": 0.15}, "at 0.5 digit patches are kept 1.5 times"),
    ],
)
def test_what_falls_short_is_said(place: int, change: dict[str, float], message: str) -> None:
    rows = list(GOOD)
    rows[place] = replace(rows[place], **change)
    assert any(message in found for found in experiment.shortcomings(rows))


def test_the_command_prints_every_row_and_draws_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], capsys
) -> None:
    threads: list[object] = []

    def bench(*_: object, **options: object) -> list[object]:
        threads.append(options["threads"])
        return [SimpleNamespace(speedup=SimpleNamespace(median=1.23))]

    monkeypatch.setattr(experiment, "bench", bench)
    monkeypatch.setattr(experiment, "QUICK", TINY)
    assert command("demo", "--quick", "-o", tmp_path, "--threads", "1") == 0
    said = capsys.readouterr().out
    for text in ("dense", "DynamicViT", "random", "seed 0", "1.23x"):
        assert text in said
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert threads == [1] * 2 * len(experiment.RATIOS)
