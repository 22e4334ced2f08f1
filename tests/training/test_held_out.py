"""Images kept aside: when they are looked at, what is said of them, and the best by them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit.core.networks import DenseNetwork
from dynamicvit.data import Batch
from dynamicvit.evaluation.accuracy import EvaluationResult, evaluate
from dynamicvit.training import Progress, fit
from dynamicvit.training.checkpoint import BEST, NEWEST
from dynamicvit.training.checkpoint_file import load_checkpoint
from dynamicvit.training.held_out import MAX_EVALUATIONS, HeldOut, is_due
from dynamicvit.utils.distributed import Processes
from families import BY_NAME, FEW, Family
from memory import Memory, paper, shallow, small

PLACES = [*FEW, BY_NAME["dinov3"], BY_NAME["eva_mixed_rope"]]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Told(HeldOut):
    """Scores that the test says, one after the other."""

    def __init__(self, *scores: float) -> None:
        super().__init__(Memory(1))
        object.__setattr__(self, "left", list(scores))

    def score(self, result: EvaluationResult) -> dict[str, float]:
        del result
        return {self.measure: vars(self)["left"].pop(0)}


@pytest.mark.parametrize(("steps", "epoch_steps"), [(7, 3), (3, 5), (9000, 30), (150, 3), (1, 1)])
def test_it_is_due_at_the_end_of_epochs_and_of_the_run(steps: int, epoch_steps: int) -> None:
    due = [step for step in range(1, steps + 1) if is_due(step, steps, epoch_steps)]
    assert due[-1] == steps
    assert all(step % epoch_steps == 0 for step in due[:-1])
    epochs = math.ceil(steps / epoch_steps)
    if epochs <= MAX_EVALUATIONS:
        assert len(due) == epochs
    assert MAX_EVALUATIONS / 2 < len(due) <= MAX_EVALUATIONS + 1 or epochs <= MAX_EVALUATIONS


def test_the_best_checkpoint_is_the_one_that_did_best_on_them(tmp_path: Path) -> None:
    report = fit(
        shallow(), Memory(2), small(steps=9), tmp_path, held_out=Told(0.2, 0.5, 0.5, 0.1, 0.4)
    )
    assert (report.best.measure, report.best.value, report.best.step) == ("top1", 0.5, 4)
    assert load_checkpoint(tmp_path / BEST)["counters"]["step"] == 4
    assert load_checkpoint(tmp_path / NEWEST)["counters"]["step"] == 9
    scores = {step["step"] + 1: step["held_out"] for step in log_of(tmp_path) if step["held_out"]}
    expected = {2: 0.2, 4: 0.5, 6: 0.5, 8: 0.1, 9: 0.4}
    assert scores == {step: {"top1": score} for step, score in expected.items()}


def test_a_run_that_goes_on_knows_what_was_best(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 4:
            raise MemoryError  # in the third epoch; the newest checkpoint is that of the second

    with pytest.raises(MemoryError):
        fit(
            shallow(),
            Memory(2),
            small(steps=6),
            tmp_path,
            held_out=Told(0.3, 0.6),
            on_step=stop,
        )
    model, recipe = shallow(), small(steps=6)
    report = fit(model, Memory(2), recipe, tmp_path, held_out=Told(0.5), resume=True)
    assert (report.best.value, report.best.step) == (0.6, 4)
    assert load_checkpoint(tmp_path / BEST)["counters"]["step"] == 4
    # Without them now, by force: a loss is no top-1.
    report = fit(model, Memory(2), small(steps=7), tmp_path, resume=True, force=True)
    assert (report.best.measure, report.best.step) == ("loss", 7)


def test_looking_at_them_changes_nothing_of_the_run(tmp_path: Path) -> None:
    models = shallow(drop_path_rate=0.2), shallow(drop_path_rate=0.2)
    recipe = paper("epochs=2", "drop_path=0.2")
    fit(models[0], Memory(), recipe, tmp_path / "without")
    report = fit(
        models[1], Memory(), recipe, tmp_path / "with", held_out=HeldOut(Memory(2, batch=5))
    )
    assert report.held_out is not None
    assert report.held_out.images == 10
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value), name


def test_the_averaged_weights_are_the_ones_that_are_looked_at(tmp_path: Path) -> None:
    model, held_out = shallow(), HeldOut(Memory(8, batch=8))
    seen: list[torch.Tensor] = []

    class Spy(HeldOut):
        def evaluate(self, model, processes, precision):
            seen.append(model.state_dict()[first])
            return super().evaluate(model, processes, precision)

    first = next(iter(model.state_dict()))
    recipe = paper("epochs=1", "ema=0.5", "backbone_frozen=0", "frozen=[]", "learning_rate=0.1")
    report = fit(model, Memory(), recipe, tmp_path, held_out=Spy(held_out.batches))
    (averaged,) = seen
    assert torch.equal(averaged, model.state_dict()[first])
    assert not torch.equal(averaged, load_checkpoint(tmp_path / NEWEST)["model"][first])
    assert report.held_out is not None
    by_hand = evaluate(model, held_out.batches)
    assert (report.held_out.top1, report.held_out.top5) == (by_hand.top1, by_hand.top5)


def test_without_labels_the_dense_network_as_it_was_is_right(tmp_path: Path) -> None:
    model = shallow(keep_ratio=0.3)
    before = copy.deepcopy(DenseNetwork(model))
    batches = Memory(8, labeled=False, batch=8)
    recipe = small("keep_ratio=0.3", "learning_rate=0.1", "backbone_lr_scale=1")
    report = fit(model, Memory(), recipe, tmp_path, held_out=HeldOut(batches, before))
    expected = evaluate(model, batches, dense=before).agreement
    assert expected is not None
    assert expected < 1, "else it tests nothing"
    assert log_of(tmp_path)[-1]["held_out"] == {"agreement": expected}
    assert report.held_out is not None
    assert report.held_out.agreement == expected
    assert report.best.measure == "agreement"
    # A run that had ended looks at them again, and says the same.
    again = fit(
        shallow(keep_ratio=0.3),
        Memory(),
        recipe,
        tmp_path,
        held_out=HeldOut(batches, before),
        resume=True,
    )
    assert again.held_out is not None
    assert again.held_out.agreement == expected


def test_labels_that_nobody_has_are_no_score() -> None:
    held_out = HeldOut(Memory(1, labeled=False))
    result = held_out.evaluate(shallow(), Processes(), None)
    assert held_out.score(result) == {}


@pytest.mark.parametrize("family", PLACES, ids=lambda family: family.name)
def test_families_train_on_after_it(family: Family, tmp_path: Path) -> None:
    """What a network keeps of an evaluation must not be what gradients can't pass.

    One for each way to place tokens, and for each kind of rotation: places are what is kept.
    """

    class Own(Memory):
        def __iter__(self) -> Iterator[Batch]:
            for _ in range(self.start, self.length):
                yield Batch(family.images(4), torch.arange(4))

    model = shallow(family)
    held_out = HeldOut(Own(1))
    fit(model, Own(1), small(steps=2), tmp_path, held_out=held_out)
    assert [bool(step["held_out"]) for step in log_of(tmp_path)] == [True, True]
