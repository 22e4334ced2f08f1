"""`dynamicvit train --dry-run`: it says what would be done, of the real thing, and does nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from dynamicvit.training import plan as module
from dynamicvit.utils.words import duration
from memory import shallow

Main = Callable[..., int]


@pytest.fixture
def plan(command: Main, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a dry run prints."""

    def run(*words: object) -> str:
        assert command("train", "--dry-run", *words) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return run


def test_a_recipe_alone_is_enough(
    plan: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No data, no weights: nothing is downloaded."""
    for name in ("time_steps", "estimate_memory"):  # of a small model in place of a full one
        measure = partial(getattr(module, name), shallow())
        replaced = lambda _, *rest, measure=measure, **how: measure(*rest, **how)  # noqa: E731
        monkeypatch.setattr(module, name, replaced)
    monkeypatch.chdir(tmp_path)
    said = plan("--recipe", "deit_tiny")
    for line in (
        "method     dynamicvit",
        "196 patches of an image of 224x224",
        "137 (69.9 %) kept from block 3 on",
        "67 (34.2 %) kept from block 9 on",
        "the others are removed",
        "1.25 G dense, 0.80 G pruned (64 %)",
        "learning rate 1e-05, weight decay 0.05",
        "30 epochs in steps of 1024 images; how many, the data will say",
        "nothing was trained or written",
    ):
        assert line in said, line
    assert re.search(r"predictors: 0\.18 M in 12 tensors, learning rate 0\.001", said)
    assert not any(tmp_path.iterdir())


def test_with_data_it_says_what_is_found_and_how_long_it_takes(
    plan: Callable[..., str], two_blocks: Path, folder: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    words = ["--set", "batch_size=4", "--set", "epochs=10", "--set", "hold_out=0.15"]
    words += ["--set", "backbone_frozen=0.1"]
    said = plan(folder, "-m", two_blocks, "-o", tmp_path / "out", "--unlabeled", folder, *words)
    for line in (
        f"{folder}: 14 images in 7 classes",
        "the others are removed",  # as the model was saved; the recipe leaves it that
        f"{folder}: 14 images, whose labels",
        "2 images of these are held out",
        "60 steps of 4 images, 10 epochs of 6",
        "an epoch leaves out 2 of the 26 images",
        "warm-up in the first 6",
        "backbone frozen in the first 6",
        "with 4 images at a time (fp32, ",
    ):
        assert line in said, line
    found = re.search(r"time +about (\d:\d\d:\d\d), without evaluation: ([\d.]+) s a step", said)
    assert found
    hours, minutes, seconds = map(int, found[1].split(":"))
    assert 3600 * hours + 60 * minutes + seconds == pytest.approx(60 * float(found[2]), abs=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_it_warns_when_memory_will_not_suffice(
    plan: Callable[..., str], two_blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "WARNING" not in plan("-m", two_blocks)
    monkeypatch.setattr("dynamicvit.cli.dry_run.available_memory", lambda _: 2_000_000)
    found = re.search(
        r"WARNING: only 0.00 GB are free: take --accumulate (\d+),", plan("-m", two_blocks)
    )
    assert found
    assert int(found[1]) > 1


def test_image_size_policy_and_method_are_the_recipes(
    plan: Callable[..., str], command: Main, two_blocks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = plan("-m", two_blocks, "--image-size", "96x64", "--policy", "merged")
    assert "patches of an image of 96x64" in said
    assert "the others merge" in said
    words = ("--method", "tome", "--policy", "merged", "--image-size", "32")
    assert "method: tome" in plan("--model", "test_vit", *words)
    for words, named in (
        (("--policy", "merged", "--set", "policy=removed"), "--set policy=removed and --policy"),
        (("--set", "seed=1", "--set", "seed=2"), "--set seed=1 and --set seed=2: give one"),
        (("--keep-ratio", "0.9", "--keep-ratio", "0.7"), "twice, 0.9 and 0.7: give one"),
    ):
        assert command("train", "--dry-run", "-m", two_blocks, *words) == 2
        assert named in capsys.readouterr().err


def test_it_prints_the_recipe_as_it_is_resolved(plan: Callable[..., str], two_blocks: Path) -> None:
    """Which decides what becomes of dropped tokens, where it says anything."""
    said = plan("-m", two_blocks, *(f"--set={each}" for each in ("images=400", "policy=removed")))
    assert "the others are removed" in said
    recipe = yaml.safe_load(said[: said.index("\ndata ")])
    assert (recipe["images"], recipe["policy"], recipe["model"]) == (
        400,
        "removed",
        str(two_blocks),
    )


def test_a_dense_network_learns_to_serve_any_budget(plan: Callable[..., str]) -> None:
    said = plan("-m", "test_vit", "--keep-ratio", 0.5, "--image-size", 32)
    for line in ("keep_ratio: 0.5", "budgets:\n- 0.4\n- 0.9", "method: lookahead"):
        assert line in said, line
    assert "the dense model, for distillation, token, feature\n" in said  # no ranking to learn


def test_a_dense_model_alone_is_compiled(
    plan: Callable[..., str], folder: Path, two_blocks: Path
) -> None:
    """Budgets that change with each step are nothing to it."""
    words = ("-m", two_blocks, "--set", "batch_size=2", "--set", "dense.batch_size=2")
    words += ("--set", "budgets=[0.4,0.9]", "--dense", "--compile")
    assert "fit the dense model" in plan(folder, *words)


def test_a_run_that_never_ends_has_a_time_too(plan: Callable[..., str], two_blocks: Path) -> None:
    assert "days" in plan("-m", two_blocks, "--set", "images=999999999999")
    assert duration(1e300).startswith("925925925 days")


@pytest.mark.usefixtures("native_bf16")
def test_passes_and_half_precision_need_less_memory(
    plan: Callable[..., str], two_blocks: Path
) -> None:
    def memory(*words: str) -> float:
        said = plan("-m", two_blocks, "--set", "batch_size=1000", *words)
        found = re.search(r"about ([\d.]+) GB", said)
        assert found
        return float(found[1])

    whole = memory()
    assert memory("--accumulate", "4") < whole / 2
    assert memory("--precision", "bf16") < whole


def test_it_refuses_what_the_run_would_refuse(
    command: Main,
    two_blocks: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_labels = ["--set", "losses.classification=1"]
    for part in ("distillation", "token", "feature"):
        by_labels += ["--set", f"losses.{part}=0"]
    for words, said in (
        ((tmp_path / "nowhere", "-m", two_blocks), "nowhere does not exist"),
        ((folder, "-m", two_blocks, "-o", two_blocks), "holds a model: choose another folder"),
        ((folder, "-m", two_blocks, "--set", "batch_size=99"), "more than the 14 images"),
        (("-m", two_blocks, "--set", "epoch=1"), "unknown key 'epoch'"),
        (("-m", two_blocks, "--unlabeled", folder), "Missing argument 'DATA'"),
        ((), "no model is named"),
        (("-m", "test_vit", "--compile"), "leave --compile out, or set budgets=null"),
        (
            ("-m", "test_vit", *by_labels),
            "interpolate 0.6 needs the dense model among the teachers",
        ),
        (("-m", "test_vit", "--set", "stages=[3]"), "leave stages (3,) out, or name a method"),
    ):
        assert command("train", "--dry-run", *words) == 2, words
        assert said in capsys.readouterr().err, words
