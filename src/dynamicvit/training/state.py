"""The state of a run: what it counts, updates, logs, saves and reports."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynamicvit.checkpoints.runs import LOG_NAME
from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import EvaluationResult
from dynamicvit.evaluation.segmentation import SegmentationResult
from dynamicvit.training.checkpoint import (
    MisfitError,
    cannot_write,
    check_same_run,
    keep_checkpoint,
    restore_newest,
)
from dynamicvit.training.held_out import Best
from dynamicvit.training.log import Progress, mend_log
from dynamicvit.training.objective import TrainingObjective
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipes import dump_recipe
from dynamicvit.training.saved_weights import Averages, Between
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.files import write_text
from dynamicvit.utils.outputs import MARK
from dynamicvit.utils.weights import load_exactly

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingReport:
    """What a finished run did.

    Attributes:
        steps: optimizer steps.
        images: images seen.
        seconds: spent training, over all its runs.
        kept: for each stage the mean share of patches kept by the decisions of the last tenth of
            the run: what the network was trained with.
        skipped: unreadable images, by name.
        bad_steps: steps left out because the loss or its gradient was not finite.
        best: which checkpoint is the best, and by what.
        held_out: how right the final weights are on the held-out images, if there are any.
        dense_held_out: how right the dense network is on them that the run began with, or that it
            first fitted, if they have labels.
    """

    steps: int
    images: int
    seconds: float
    kept: tuple[float, ...]
    skipped: tuple[str, ...]
    bad_steps: int
    best: Best
    held_out: EvaluationResult | SegmentationResult | None = None
    dense_held_out: EvaluationResult | SegmentationResult | None = None


class RunState:
    """What a run must not lose: counters, weights, optimizer, averages.

    Random generators need no place here: each step seeds them by the recipe's seed and its own
    number, which also is the place in the epochs.

    Args:
        folder: of the run; the main process writes its log and checkpoints there.
        recipe: of the run.
        objective: student and teachers. The dense teacher's weights are saved, for nobody else may
            have them as they were at the start; of another network only what tells it from a third.
        optimizer: of the student.
        saved: what is evaluated and saved in place of the weights that learn, if the recipe has it.
        scaler: of the loss, for fp16.
        steps: of the whole run.
        epoch_steps: in an epoch.
        images_digest: tells the images of the epochs from others.
        processes: that share the run.
        best: none yet, with what will tell it.

    Attributes:
        score: on held-out images, of the weights as they are; None if they were not evaluated.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        objective: TrainingObjective,
        *,
        optimizer: torch.optim.Optimizer,
        saved: Averages | Between | None,
        scaler: torch.amp.GradScaler,
        steps: int,
        epoch_steps: int,
        images_digest: str | None,
        processes: Processes,
        best: Best,
    ) -> None:
        self.folder, self.recipe, self.objective = folder, recipe, objective
        self.optimizer, self.saved, self.scaler = optimizer, saved, scaler
        self.steps, self.epoch_steps, self.processes = steps, epoch_steps, processes
        self.images_digest = images_digest
        self.step = self.images = self.bad_steps = self.bad_in_a_row = 0
        self.seconds = self.seconds_before = 0.0
        self.skipped: list[str] = []
        self.log_bytes = 0
        self.best = best
        self.score: float | None = None
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last save
        self.kept_sum, self.kept_steps = [0.0] * len(self.model.schedule.stages), 0

    @property
    def model(self) -> DynamicViT:
        """The student."""
        return self.objective.model

    _counters = (
        "step", "images", "bad_steps", "bad_in_a_row", "seconds", "skipped", "log_bytes",
        "kept_sum", "kept_steps",
    )  # fmt: skip

    @property
    def network(self) -> nn.Module:
        """The weights that the run is for."""
        return self.model if self.saved is None else self.saved.module

    @property
    def is_best(self) -> bool:
        """Whether the weights as they are were found to be better than any before."""
        return self.best.beaten_by(self._value)

    @property
    def _value(self) -> float | None:
        """What the best is told by."""
        if self.best.measure != "loss":
            return self.score
        return self.loss_sum / self.loss_steps if self.loss_steps else None

    @property
    def log_file(self) -> Path:
        """A line of JSON for each step."""
        return self.folder / LOG_NAME

    def update(self, loss: float, clip: float | None) -> float:
        """One optimizer step, left out when loss or gradient is not finite; the gradient norm."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        limit = math.inf if clip is None else clip
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        if math.isfinite(loss) and math.isfinite(norm):
            self.bad_in_a_row = 0
            self.scaler.step(self.optimizer)
            if self.saved is not None:
                self.saved.update(self.model, step=self.step)
        else:
            self.bad_steps += 1
            self.bad_in_a_row += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def count(self, progress: Progress) -> None:
        """Add a step up, for best checkpoint and report."""
        if math.isfinite(progress.losses["total"]):
            self.loss_sum += progress.losses["total"]
            self.loss_steps += 1
        if progress.step >= self.steps - max(1, self.steps // 10):
            self.kept_sum = [a + b for a, b in zip(self.kept_sum, progress.kept, strict=True)]
            self.kept_steps += 1

    def write_recipe(self) -> None:
        """The recipe as it was resolved, as YAML."""
        path = self.folder / "recipe.yaml"
        try:
            write_text(path, f"# {MARK}\n{dump_recipe(self.recipe)}", ours=True)
        except OSError as error:
            raise cannot_write(path, error) from error

    def start_log(self) -> None:
        """An empty one, in place of what was there."""
        try:
            write_text(self.log_file, "", ours=True)
        except OSError as error:
            raise cannot_write(self.log_file, error) from error

    def log(self, progress: Progress) -> None:
        """One line of JSON for each step."""
        line = progress.to_line()
        try:
            with open(self.log_file, "a") as file:
                file.write(line)
        except OSError as error:
            raise cannot_write(self.log_file, error) from error
        self.log_bytes += len(line)

    def save(self) -> None:
        """Write everything that going on needs, in the main process."""
        is_best = self.is_best
        if is_best:
            self.best.value, self.best.step = self._value, self.step
        state: dict[str, Any] = {
            "recipe": self.recipe.model_dump(mode="json"),
            "epoch_steps": self.epoch_steps,
            "processes": self.processes.count,
            "images": self.images_digest,
            "external_teacher": self._external_teacher,
            **{part: weights.state_dict() for part, weights in self._parts().items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": {name: getattr(self, name) for name in self._counters},
            "best": asdict(self.best),
        }
        if self.processes.is_main:
            keep_checkpoint(state, self.folder, best=is_best)
        self.loss_sum, self.loss_steps, self.score = 0.0, 0, None

    def restore(self, *, force: bool = False) -> None:
        """Go on from the folder's newest checkpoint.

        What the log has of steps after it is cut off, for they are done again.

        Args:
            force: even if it is of a run with other values.
        """
        restore_newest(
            self.folder,
            lambda state, path: self._take(state, path, force),
            tidy=self.processes.is_main,
        )
        steps = self.processes.gather(self.step)
        if len({*steps}) > 1:
            raise InputError(
                f"the processes found checkpoints of steps {steps} in {self.folder}: give a folder "
                "that all machines share"
            )
        if self.processes.is_main:
            self.log_bytes = mend_log(self.log_file, self.step, self.log_bytes)

    def _take(self, state: dict[str, Any], path: Path, force: bool) -> None:
        """Become what a checkpoint says."""
        check_same_run(
            state,
            path,
            self.recipe,
            epoch_steps=self.epoch_steps,
            processes=self.processes.count,
            images=self.images_digest,
            external_teacher=self._external_teacher,
            force=force,
        )
        for part, weights in self._parts().items():
            if part == "ema" and isinstance(self.saved, Between):
                continue  # made of the others
            if part == "teacher" and part not in state:
                _log.warning("%s has no dense teacher: it is the model as it is loaded now", path)
                continue
            if part not in state:
                raise MisfitError(f"{path} holds no {part} weights: set ema=null to go on")
            try:
                load_exactly(weights, state[part], f"{path} is of another model")
            except InputError as error:
                raise MisfitError(str(error)) from None
        _load_optimizer(self.optimizer, state["optimizer"], path)
        if state["scaler"] and self.scaler.is_enabled():  # another precision has another
            self.scaler.load_state_dict(state["scaler"])
        counters = state["counters"]
        if len(counters["kept_sum"]) != len(self.kept_sum):
            raise MisfitError(f"{path} counts {len(counters['kept_sum'])} stages")
        for name in self._counters:
            setattr(self, name, counters[name])
        self.seconds_before = self.seconds
        best = Best(**state.get("best", {}))
        if best.measure == self.best.measure:  # forced, a run may go on with another
            self.best = best

    def _parts(self) -> dict[str, nn.Module]:
        saved = None if self.saved is None else self.saved.module
        # A frozen backbone is the teacher itself.
        teacher = None if self.recipe.freeze_backbone else self.objective.dense_teacher
        parts = {"model": self.model, "teacher": teacher, "ema": saved}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def _external_teacher(self) -> str | None:
        teacher = self.objective.external_teacher
        return None if teacher is None else teacher.fingerprint

    def report(
        self, held_out: EvaluationResult | SegmentationResult | None = None
    ) -> TrainingReport:
        """What was done, and how right the final weights are."""
        return TrainingReport(
            steps=self.step,
            images=self.images,
            seconds=self.seconds,
            kept=tuple(total / max(1, self.kept_steps) for total in self.kept_sum),
            skipped=tuple(dict.fromkeys(self.skipped)),
            bad_steps=self.bad_steps,
            best=self.best,
            held_out=held_out,
        )


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Take moments and counts from a checkpoint; rates and decays are the recipe's."""
    groups = optimizer.param_groups
    ours = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    indices = [group["params"] for group in state["param_groups"]]
    if [len(those) for those in indices] != [len(group["params"]) for group in groups]:
        raise MisfitError(f"{path}: other weights learned there than the recipe says")
    for index, weight in zip(
        (index for those in indices for index in those),
        (weight for group in groups for weight in group["params"]),
        strict=True,
    ):
        for name, value in state["state"].get(index, {}).items():
            if value.shape != (() if name == "step" else weight.shape):
                raise MisfitError(
                    f"{path}: {name} of a weight {tuple(weight.shape)} is {tuple(value.shape)}"
                )
    if len({frozenset(moments) for moments in state["state"].values()}) > 1:
        raise MisfitError(f"{path}: some weights have moments that others lack")
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, ours, strict=True):  # they are new ones
        group.update(values)
