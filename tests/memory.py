"""Batches out of nothing, and recipes short enough for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dynamicvit import DynamicViT
from dynamicvit.core.losses import Losses
from dynamicvit.core.outputs import MaskedOutput
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.training import ExternalTeacher, Recipe, load_recipe
from dynamicvit.training.draws import Mixing, seed_everything
from dynamicvit.training.objective import objective_of
from families import DEIT, Family

BATCH = 4

#: Two steps of four images, as words of a command.
TINY = ("--set", "images=8", "--set", f"batch_size={BATCH}")


class Memory:
    """Batches that depend on epoch and place only."""

    def __init__(self, length: int = 3, labeled: bool = True, batch: int = BATCH) -> None:
        self.length, self.labeled, self.batch = length, labeled, batch
        self.epoch = self.start = 0
        self.share = 0, 1

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def set_share(self, index: int, count: int) -> None:
        self.share = index, count

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        part, parts = self.share
        for place in range(self.start, self.length):
            draw = torch.Generator().manual_seed(100 * self.epoch + place)
            images = torch.randn(self.batch, 3, *DEIT.size, generator=draw)
            labels = torch.randint(7, (self.batch,), generator=draw)
            if not self.labeled:
                labels = torch.full_like(labels, UNLABELED)
            yield Batch(images.tensor_split(parts)[part], labels.tensor_split(parts)[part])


def shallow(family: Family = DEIT, **kwargs: Any) -> DynamicViT:
    """The smallest model that has something to train: one block, a stage, one block."""
    return family.sparse(**{"depth": 2, "stages": (1,), **kwargs})


def small(*overrides: str, steps: int = 6) -> Recipe:
    """The recipe for little data."""
    return load_recipe("small_data", [f"images={BATCH * steps}", f"batch_size={BATCH}", *overrides])


def paper(*overrides: str) -> Recipe:
    """The paper's recipe, two epochs of it."""
    return load_recipe("deit_small", ["epochs=2", f"batch_size={BATCH}", "ema=null", *overrides])


def losses_of(
    model: DynamicViT,
    recipe: Recipe,
    batch: Batch,
    teacher: ExternalTeacher | None = None,
    first: int = 0,
) -> tuple[MaskedOutput, Losses]:
    """What a recipe computes of one batch, mixed always alike."""
    seed_everything(0)
    images, targets = Mixing(recipe.augment, model.num_classes)(batch)
    objective = objective_of(model, recipe, teacher)
    return objective.with_output(images, targets, first=first)
