"""What a run says of itself: shares that are kept, and steps that are not finite."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, InputError
from dynamicvit.data import Batch
from dynamicvit.training import Recipe, fit
from dynamicvit.training.checkpoint_file import load_checkpoint
from dynamicvit.training.finite import not_finite, suspects
from dynamicvit.training.step import Measured
from dynamicvit.utils.distributed import Processes
from families import DEIT
from memory import BATCH, Memory, paper, small


class Poisoned(Memory):
    """Memory with names, and NaN from the second image on in some batches."""

    def __init__(self, *bad: int, images: int = 1) -> None:
        super().__init__()
        self.bad, self.images = bad, images

    def __iter__(self) -> Iterator[Batch]:
        for place, batch in enumerate(super().__iter__(), self.start):
            if place in self.bad:
                batch.images[1 : 1 + self.images] = math.nan
            names = tuple(f"{place}-{number}.jpg" for number in range(len(batch)))
            yield dataclasses.replace(batch, paths=names)


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def sure(keep: bool) -> DynamicViT:
    """A model whose scores ask for every patch, or for none."""
    model = DEIT.sparse()
    for predictor in model.predictors:
        predictor.mlp[-1].weight.data.zero_()
        predictor.mlp[-1].bias.data.copy_(torch.tensor([0.4, -0.4] if keep else [-0.4, 0.4]))
    return model


# ---------------------------------------------------------------- shares


def test_what_was_sampled_is_not_what_the_scores_ask_for(tmp_path: Path) -> None:
    """σ(0.8) of the patches are sampled, but each is likelier kept than not."""
    recipe = paper("images=4", "learning_rate=1e-9")
    fit(sure(keep=True), Memory(), recipe, tmp_path)
    (step,) = log_of(tmp_path)
    assert step["kept"][0] == pytest.approx(torch.sigmoid(torch.tensor(0.8)).item(), abs=0.15)
    # After the first stage the question is put to those that are left.
    assert step["kept_by_score"] == pytest.approx([1.0, *step["kept"][:-1]])
    fit(sure(keep=False), Memory(), recipe, tmp_path)
    (step,) = log_of(tmp_path)
    assert step["kept_by_score"] == [0.0, 0.0, 0.0]
    assert step["kept"][0] > 0.1


def test_the_share_at_inference_is_that_of_the_pruned_path(tmp_path: Path) -> None:
    model = DEIT.sparse(keep_ratio=0.6)
    fit(model, Memory(), small("keep_ratio=0.6", steps=1), tmp_path)
    survived = model.forward_pruned(DEIT.images()).kept
    (step,) = log_of(tmp_path)
    assert step["kept_at_inference"] == pytest.approx([float(s.float().mean()) for s in survived])
    assert step["kept"] == pytest.approx(step["kept_at_inference"])  # best-k draws nothing


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [(paper("images=4"), 3), (paper("images=4", "decisions=top-k"), 0), (small(steps=1), 0)],
)
def test_where_only_the_order_counts_the_scores_ask_for_no_share(
    recipe: Recipe, stages: int, tmp_path: Path
) -> None:
    fit(DEIT.sparse(), Memory(), recipe, tmp_path)
    (step,) = log_of(tmp_path)
    assert len(step["kept_by_score"]) == stages


def test_shares_and_bad_images_do_not_depend_on_the_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = []
    for passes in (1, 3):  # 3 of 4 images: passes of different sizes
        folder = tmp_path / str(passes)
        data = Poisoned(1, images=3)
        recipe = paper("images=8", "augment.mixup=0", "augment.cutmix=0")
        fit(DEIT.sparse(), data, recipe, folder, accumulate=passes)
        steps.append(log_of(folder))
    for one, other in zip(*steps, strict=True):
        assert one["kept_by_score"] == pytest.approx(other["kept_by_score"])
        assert one["kept"] == pytest.approx(other["kept"])
        assert one["not_finite"] == other["not_finite"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].endswith("the logits of 3 of its 4 images are not: 1-1.jpg, 1-2.jpg, 1-3.jpg")


# ---------------------------------------------------------------- steps that are not finite


@pytest.mark.parametrize(
    ("losses", "norm", "bad"),
    [
        ({"total": 1.0, "token": 0.5}, 1.0, ()),
        ({"total": math.nan, "token": math.nan, "ratio": 0.1}, 1.0, ("token",)),
        ({"total": math.inf, "token": math.nan, "ratio": math.inf}, 1.0, ("token", "ratio")),
        ({"total": math.inf, "token": 3e38}, 1.0, ("total",)),
        ({"total": math.nan, "token": math.nan}, math.nan, ("token",)),
        ({"total": 1.0, "token": 0.5}, math.inf, ("gradient",)),
    ],
)
def test_the_part_is_named(losses: dict[str, float], norm: float, bad: tuple[str, ...]) -> None:
    assert not_finite(losses, norm) == bad


def test_a_bad_step_is_counted_and_named_and_changes_no_weight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = DEIT.sparse()
    report = fit(model, Poisoned(1), small(steps=3), tmp_path)
    assert report.bad_steps == 1
    assert all(value.isfinite().all() for value in model.state_dict().values())
    steps = log_of(tmp_path)
    assert [step["not_finite"] for step in steps][::2] == [[], []]
    assert {"distillation", "token"} <= set(steps[1]["not_finite"])
    assert "total" not in steps[1]["not_finite"]
    assert steps[1]["losses"]["token"] is None  # NaN is no JSON
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert said.startswith("step 1 left out: ")
    assert "token" in said
    assert said.endswith("the logits of 1 of its 4 images are not: 1-1.jpg")
    assert [step["suspects"] for step in steps] == [[], ["1-1.jpg"], []]


def test_the_part_that_is_to_blame_is_named_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        return torch.tensor(math.inf)

    monkeypatch.setattr("dynamicvit.core.losses.ratio_loss", broken)
    fit(DEIT.sparse(), Poisoned(), paper("images=4"), tmp_path)
    (step,) = log_of(tmp_path)
    assert step["not_finite"] == ["ratio"]
    said = "ratio not finite; the logits of all its 4 images are: 0-0.jpg, 0-1.jpg, 0-2.jpg and 1 "
    assert said in caplog.text
    assert step["suspects"] == ["0-0.jpg", "0-1.jpg", "0-2.jpg"]


def test_each_process_names_its_own_and_unknown_names_are_no_error() -> None:
    class Two(Processes):
        def gather(self, value: list[str]) -> list[list[str]]:
            return [value, ["other.jpg"] * 5]

    measured = Measured({}, (), (), bad_answers=6, bad_places=(1,))
    names = suspects(Two(), ("a.jpg", "b.jpg"), measured)
    assert names == ("b.jpg", "other.jpg", "other.jpg")
    assert suspects(Processes(), (), measured) == ()


def test_ten_in_a_row_stop_the_run_with_the_weights_before_them(tmp_path: Path) -> None:
    class LaterPoisoned(Poisoned):
        def __iter__(self) -> Iterator[Batch]:
            self.bad = (0, 1, 2) if self.epoch else ()
            return super().__iter__()

    model, good = DEIT.sparse(), DEIT.sparse()
    fit(good, Memory(), small(steps=3), tmp_path / "good")
    recipe = small(steps=30)
    with pytest.raises(InputError, match="10 steps in a row, up to step 12") as error:
        fit(model, LaterPoisoned(), recipe, tmp_path / "bad")
    for said in ("learning_rate", "clip_grad", "fp32", f"{tmp_path / 'bad'} keeps the run"):
        assert said in str(error.value)
    steps = log_of(tmp_path / "bad")
    assert [bool(step["not_finite"]) for step in steps] == [False] * 3 + [True] * 10
    state = load_checkpoint(tmp_path / "bad" / "checkpoint.pt")
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["counters"]["step"] == 13
    # It can go on, and ten more may be bad.
    with pytest.raises(InputError, match="up to step 22"):
        fit(DEIT.sparse(), LaterPoisoned(), recipe, tmp_path / "bad", resume=True)
    report = fit(DEIT.sparse(), Memory(), recipe, tmp_path / "bad", resume=True)
    assert (report.steps, report.bad_steps) == (30, 20)
    assert report.images == 30 * BATCH
