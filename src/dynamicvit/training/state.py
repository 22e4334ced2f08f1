"""The state of a run: what it counts, updates, logs, saves and reports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.model import DynamicViT
from dynamicvit.training.checkpoint import load_checkpoint, save_checkpoint
from dynamicvit.training.log import LOG_NAME, to_line
from dynamicvit.training.recipe import Recipe, dump_recipe
from dynamicvit.weights import load_exactly


@dataclass(frozen=True)
class Progress:
    """One step of a run, for whoever shows it.

    Attributes:
        step: counted from 0.
        steps: of the whole run.
        images: seen so far.
        images_per_second: of this run of the program, reading included.
        losses: each part by name, unweighted, and the total.
        kept: for each stage the mean share of patches that the step's decisions kept.
        learning_rates: of prediction modules and backbone.
        gradient_norm: before clipping; NaN for a step that was left out.
        kept_by_score: for each stage the mean share of patches that are still there and likelier
            kept than not by the scores alone.
        kept_at_inference: for each stage the share of patches that the k best are.
        not_finite: for a step that was left out, the parts of the loss that were not finite.
    """

    step: int
    steps: int
    images: int
    images_per_second: float
    losses: dict[str, float]
    kept: tuple[float, ...]
    learning_rates: dict[str, float]
    gradient_norm: float
    kept_by_score: tuple[float, ...]
    kept_at_inference: tuple[float, ...]
    not_finite: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingReport:
    """What a finished run did.

    Attributes:
        steps: optimiser steps.
        images: images seen.
        seconds: spent training, over all its runs.
        kept: for each stage the mean share of patches kept by the decisions of the last tenth of
            the run: what the network was trained with.
        skipped: unreadable images, by name.
        bad_steps: steps left out because the loss was not finite.
    """

    steps: int
    images: int
    seconds: float
    kept: tuple[float, ...]
    skipped: tuple[str, ...]
    bad_steps: int


class RunState:
    """What a run must not lose: counters, weights, optimiser, averages."""

    def __init__(
        self,
        folder: Path,
        model: DynamicViT,
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
        teacher: nn.Module,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.teacher = teacher
        self.step = self.images = self.bad_steps = self.bad_in_a_row = 0
        self.seconds = self.seconds_before = 0.0
        self.skipped: list[str] = []
        self.kept: list[tuple[float, ...]] = []

    def update(self, loss: Tensor, clip: float | None) -> float:
        """One optimiser step, left out when the loss is not finite; the gradient norm."""
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            self.bad_steps += 1
            self.bad_in_a_row += 1
            return math.nan
        self.bad_in_a_row = 0
        loss.backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        return float(norm)

    def log(self, progress: Progress) -> None:
        """One line of JSON for each step."""
        self.kept.append(progress.kept)
        with open(self.folder / LOG_NAME, "a") as file:
            file.write(to_line(progress))

    def save(self, recipe: Recipe) -> None:
        """Write everything that going on needs."""
        state: dict[str, Any] = {
            "recipe": dump_recipe(recipe),
            **{part: weights.state_dict() for part, weights in self._parts().items()},
            "optimizer": self.optimizer.state_dict(),
            "counters": {name: getattr(self, name) for name in self._counters},
        }
        save_checkpoint(state, self.folder / "checkpoint.pt")

    def restore(self, recipe: Recipe) -> None:
        """Go on from the folder's checkpoint."""
        path = self.folder / "checkpoint.pt"
        state = load_checkpoint(path)
        if state.get("recipe") != dump_recipe(recipe):
            raise InputError(f"{path} belongs to another recipe; see {self.folder}/recipe.yaml")
        for part, weights in self._parts().items():
            load_exactly(weights, state[part], f"{path} is of another model")
        self.optimizer.load_state_dict(state["optimizer"])
        for name in self._counters:
            setattr(self, name, state["counters"][name])
        self.seconds_before = self.seconds
        log = self.folder / LOG_NAME  # what came after the checkpoint is done again
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        log.write_text("".join(lines[: len(self.kept)]))

    def _parts(self) -> dict[str, nn.Module]:
        averaged = {} if self.ema is None else {"ema": self.ema.module}
        return {"model": self.model, "teacher": self.teacher, **averaged}

    _counters = ("step", "images", "bad_steps", "bad_in_a_row", "seconds", "skipped", "kept")

    def report(self) -> TrainingReport:
        """What was done."""
        last = self.kept[-max(1, len(self.kept) // 10) :]
        return TrainingReport(
            steps=self.step,
            images=self.images,
            seconds=self.seconds,
            kept=tuple(sum(stage) / len(last) for stage in zip(*last, strict=True)),
            skipped=tuple(dict.fromkeys(self.skipped)),
            bad_steps=self.bad_steps,
        )
