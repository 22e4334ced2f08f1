"""Schedules in files: the same drops wherever they are used, and refused where they can't be."""

from __future__ import annotations

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, InputError, Schedule, ScheduleFile, load, sparsify
from dynamicvit.core.prediction import PredictionModule
from dynamicvit_command import COMMANDS
from families import DEIT

TIMM_DEIT = "deit_tiny_patch16_224"
SCHEDULE = Schedule((1, 3), (0.7, 0.3), "merged")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.json"
    ScheduleFile(SCHEDULE, 4, "lookahead", 20, {"macs": 0.6}).save(path)
    return path


def test_every_command_with_a_keep_ratio_takes_a_schedule() -> None:
    named = {
        name: set(
            inspect.signature(getattr(import_module(f"dynamicvit.cli.{file}"), what)).parameters
        )
        for name, (target, _) in COMMANDS.items()
        for file, what in [target.split(":")]
    }
    takers = [name for name, options in named.items() if "keep_ratio" in options]
    assert len(takers) > 5
    assert all("schedule" in named[name] for name in takers)


def test_a_file_says_what_was_saved(file: Path) -> None:
    found = ScheduleFile.load(file)
    assert found == ScheduleFile(SCHEDULE, 4, "lookahead", 20, {"macs": 0.6})
    assert found.schedule == SCHEDULE


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("depth", 3, "block index"),
        ("depth", 2.5, "depth"),
        ("keep_ratios", [0.3, 0.7], "grow"),
        ("keep_ratios", [0.7], "stages"),
        ("keep_ratios", [0.7, 0], "keep_ratios"),
        ("stages", [3, 1], "ascend"),
        ("policy", "kept", "policy"),
        ("policy", None, "policy"),
        ("format_version", 99, "99"),
        ("method", None, "method"),
        ("found_for", [1], "found_for"),
        ("stage", [1], "stage"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    file: Path, key: str, value: Any, word: str
) -> None:
    values = json.loads(file.read_text()) | {key: value}
    file.write_text(json.dumps(values))
    with pytest.raises(InputError, match=word) as refused:
        ScheduleFile.load(file)
    assert str(file) in str(refused.value)


def test_a_damaged_file_and_another_kind_are_refused(file: Path) -> None:
    file.write_text(file.read_text()[:-40])
    with pytest.raises(InputError, match="JSON"):
        ScheduleFile.load(file)
    file.write_text('{"depth": 4}')
    with pytest.raises(InputError, match="no schedule"):
        ScheduleFile.load(file)


@pytest.mark.parametrize("method", ["lookahead", "tome", "class-attention", "dynamicvit"])
def test_every_method_keeps_what_a_schedule_says(method: str) -> None:
    """Also one that merges pairs, where a stage leaves fewer than half."""
    model = sparsify(DEIT.backbone(), schedule=SCHEDULE, method=method).eval()
    model.warns_untrained = False
    with torch.no_grad():
        kept = [stage.sum(dim=1).tolist() for stage in model.forward_pruned(DEIT.images()).kept]
    assert kept == [[count] * 2 for count in SCHEDULE.kept(DEIT.num_patches)]


def test_the_file_names_the_method(file: Path) -> None:
    model = sparsify(DEIT.backbone(), schedule=file)
    assert (model.method.name, model.schedule) == ("lookahead", SCHEDULE)
    assert sparsify(DEIT.backbone(), schedule=file, method="tome").method.name == "tome"
    with pytest.raises(InputError, match="5"):
        sparsify(DEIT.backbone(depth=5), schedule=file)
    with pytest.raises(InputError, match=r"\(2,\)"):
        sparsify(DEIT.backbone(), schedule=file, stages=(2,))


def test_setting_a_schedule_gives_the_model_that_is_made_with_it() -> None:
    moved = sparsify(DEIT.backbone(), method="lookahead").eval()
    moved.schedule = SCHEDULE
    made = DynamicViT(DEIT.backbone(), SCHEDULE, moved.method).eval()
    with torch.no_grad():
        assert torch.equal(moved(DEIT.images()), made(DEIT.images()))


def test_trained_prediction_modules_stay_where_they_are() -> None:
    model = DEIT.sparse(stages=(1, 2), keep_ratio=0.7)
    with pytest.raises(InputError, match=r"\(1, 3\)"):
        model.schedule = SCHEDULE
    assert model.schedule.stages == (1, 2)
    model.schedule = Schedule((1, 2), (0.9, 0.3), "merged")
    assert model.keep_ratios == (0.9, 0.3)
    assert model.policy == "merged"
    fresh = DynamicViT(DEIT.backbone(), Schedule((1, 2), (0.7, 0.5)), PredictionModule)
    fresh.schedule = SCHEDULE
    assert len(fresh.predictors) == 2


def test_load_puts_a_schedule_on_a_dense_and_on_a_saved_model(file: Path, tmp_path: Path) -> None:
    saved = DEIT.sparse(stages=(1, 3), keep_ratio=0.5)
    saved.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="lookahead"):
        load(tmp_path / "model", schedule=file)
    model = load(tmp_path / "model", schedule=file, method="dynamicvit")
    assert model.schedule == SCHEDULE
    assert torch.equal(model.predictors[0].mlp[-1].bias, saved.predictors[0].mlp[-1].bias)
    ScheduleFile(SCHEDULE, 12, "lookahead").save(file)
    dense = load(TIMM_DEIT, pretrained=False, schedule=file)
    assert (dense.method.name, dense.schedule) == ("lookahead", SCHEDULE)
    with pytest.raises(InputError, match="12 blocks"):
        load(tmp_path / "model", schedule=file, method="dynamicvit")
    with pytest.raises(InputError, match=r"0\.5"):
        load(TIMM_DEIT, pretrained=False, schedule=file, keep_ratio=0.5)
