"""The objective: what the trainer minimizes, in a loop of one's own, and a whole run."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynamicvit import DynamicViT, InputError
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.core.losses import LossWeights
from dynamicvit.training import ExternalTeacher, TrainingObjective, fit, train
from dynamicvit.training.draws import seed_of
from dynamicvit.training.objective import objective_of
from dynamicvit.training.optimizer import create_optimizer
from families import DEIT, NUM_CLASSES
from memory import Memory, paper, small
from pictures import noise_folders

PLAIN = ("augment.mixup=0", "augment.cutmix=0")


def batch(targets: bool = True) -> tuple[Tensor, Tensor]:
    first = next(iter(Memory()))
    return first.images, first.labels if targets else torch.full_like(first.labels, -1)


def test_a_plain_loop_learns() -> None:
    model = DEIT.sparse()
    weights = LossWeights(ratio=0.0)
    objective = TrainingObjective(model, weights=weights, sampler=best_k_sampler).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    totals = []
    for _ in range(6):
        losses = objective(*batch())
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(losses.total.item())
    assert totals[-1] < 0.8 * totals[0]
    assert {id(p) for p in objective.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    "recipe", [small(*PLAIN, steps=1), paper(*PLAIN, "images=4")], ids=["small", "paper"]
)
def test_it_is_what_the_trainer_logs(recipe, tmp_path: Path) -> None:
    fit(DEIT.sparse(), Memory(), recipe, tmp_path)
    logged = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["losses"]
    objective = objective_of(DEIT.sparse().train(), recipe)
    objective.sampler.begin(seed_of(recipe.seed, 0), 0, 4)
    losses = objective(*batch())
    assert {name: part.item() for name, part in vars(losses).items()} == pytest.approx(
        logged, rel=1e-4, abs=1e-6
    )


def test_soft_targets_and_none() -> None:
    objective = TrainingObjective(DEIT.sparse().train(), sampler=best_k_sampler)
    images, labels = batch()
    soft = torch.nn.functional.one_hot(labels, NUM_CLASSES).float()
    torch.testing.assert_close(objective(images, soft).total, objective(images, labels).total)
    assert objective(*batch(targets=False)).classification == 0
    with pytest.raises(InputError, match="classification"):
        objective(images)
    weights = LossWeights(classification=0.0)
    assert TrainingObjective(objective.model, weights=weights)(images).total > 0


def test_teachers_go_with_it_but_are_no_part_of_it() -> None:
    model = DEIT.sparse()
    teacher = ExternalTeacher(DEIT.backbone(seed=3), model)
    objective = TrainingObjective(model, teacher=teacher).double().train()
    assert {p.dtype for each in objective.teachers for p in each.parameters()} == {torch.float64}
    assert not any(each.training for each in objective.teachers)
    assert list(objective.state_dict()) == [f"model.{name}" for name in model.state_dict()]
    assert objective(batch()[0].double(), batch()[1]).total.dtype is torch.float64


def test_an_optimizer_step_leaves_the_teachers() -> None:
    model = DEIT.sparse().train()
    objective = TrainingObjective(model)
    assert objective.dense_teacher is not None
    before = {n: v.clone() for n, v in objective.dense_teacher.state_dict().items()}
    optimizer = create_optimizer(model, paper())
    objective(*batch()).total.backward()
    optimizer.step()
    after = objective.dense_teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_timms_script_takes_it_as_a_task() -> None:
    timm_task = pytest.importorskip("timm.task")

    class Task(timm_task.TrainingTask):
        def __init__(self, objective: TrainingObjective) -> None:
            super().__init__()
            self.objective = objective

        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            output, losses = self.objective.with_output(input, target)
            return {"loss": losses.total, "output": output.logits}

    result = Task(TrainingObjective(DEIT.sparse())).train()(*batch())
    result["loss"].backward()
    assert result["output"].shape == (4, NUM_CLASSES)


# ---------------------------------------------------------------- train()


def test_a_run_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where neither TensorBoard nor matplotlib is installed: it says once how to get them."""
    for name in ("tensorboard", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    images = noise_folders(tmp_path / "images", classes=NUM_CLASSES, each=2)
    model, out = DEIT.sparse(keep_ratio=0.5), tmp_path / "out"
    overrides = ("images=8", "batch_size=4", "hold_out=0.2")
    steps = []
    with caplog.at_level(logging.WARNING):
        report = train(
            images, out, model, overrides=overrides, workers=0, device="cpu", on_step=steps.append
        )
    assert (report.steps, report.images, len(steps)) == (2, 8, 2)
    assert report.held_out is not None
    assert report.held_out.top1 is not None
    assert caplog.text.count("dynamicvit[track]") == caplog.text.count("dynamicvit[plots]") == 1
    loaded = DynamicViT.from_pretrained(out)
    assert loaded.keep_ratio == 0.5
    assert torch.equal(loaded(DEIT.images()), model(DEIT.images()))
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["training"]["images"] == 8
    # The same call goes on: here there is nothing left to do.
    again = train(images, out, DEIT.sparse(keep_ratio=0.5), overrides=overrides, workers=0)
    assert again.steps == 2
    with pytest.raises(InputError, match="holds no checkpoint"):
        train(images, tmp_path / "new", model, resume=True)
    with pytest.raises(InputError, match="names no model"):
        train(images, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_dense_network_becomes_one_that_learns_what_to_drop(tmp_path: Path) -> None:
    images = noise_folders(tmp_path / "images", classes=NUM_CLASSES, each=2)
    overrides = ("images=4", "batch_size=4", "hold_out=0", "keep_ratio=0.6")
    network = DEIT.backbone()
    train(images, tmp_path / "out", network, overrides=overrides, workers=0, device="cpu")
    loaded = DynamicViT.from_pretrained(tmp_path / "out")
    assert (loaded.method.name, loaded.keep_ratio) == ("lookahead", 0.6)
    with pytest.raises(InputError, match="has its own weights: leave"):
        train(images, tmp_path / "new", network, checkpoint="weights.pth")
