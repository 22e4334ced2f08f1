"""Who teaches a run: the backbone's own dense self, another network, both, or nobody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT, Stem
from dynamicvit.core.networks import eval_mode
from dynamicvit.core.outputs import DenseOutput
from dynamicvit.core.teacher import ask, dense_teacher, weigh_some
from dynamicvit.errors import InputError
from dynamicvit.training.external_teacher import ForeignTeacher
from dynamicvit.training.recipe import Recipe


class Taught(NamedTuple):
    """What the losses are told of a batch; ``None`` is what none of them looks at.

    Attributes:
        dense: the dense self's answer.
        logits: ``(B, classes)``, the other network's.
    """

    dense: DenseOutput | None
    logits: Tensor | None


@dataclass(frozen=True)
class Teachers:
    """Those that the recipe's losses look at; ``None`` where none of them does.

    Attributes:
        dense: the backbone's dense self as it was at the start, frozen.
        foreign: another network, for its logits.
    """

    dense: DynamicViT | None
    foreign: ForeignTeacher | None

    def __iter__(self) -> Iterator[nn.Module]:
        """Those that there are."""
        return iter([each for each in (self.dense, self.foreign) if each is not None])

    def shared_stem(self, model: DynamicViT, images: Tensor) -> Stem:
        """The images' tokens before the first stage, for the student and its dense self alike.

        Args:
            model: the student, whose stem is never trained and so is that of its dense self.
            images: ``(B, channels, height, width)``.
        """
        own = model if self.dense is None else self.dense
        with torch.no_grad(), eval_mode(own):
            return own.stem(images, model.schedule.stages[0])

    def ask(self, start: Tensor | Stem, images: Tensor, guided: Tensor | None = None) -> Taught:
        """What they say of a batch, at the least cost.

        Args:
            start: what the student starts from: the images, or their stem.
            images: ``(B, channels, height, width)``.
            guided: ``(B,)`` bool, of which images the dense self weighs the patches too.
        """
        logits = None if self.foreign is None else self.foreign(images)
        if self.dense is None:
            return Taught(None, logits)
        if guided is None:
            return Taught(ask(self.dense, start), logits)
        return Taught(weigh_some(self.dense, start, guided.to(images.device)), logits)


def teachers_for(
    model: DynamicViT, recipe: Recipe, foreign: ForeignTeacher | None = None
) -> Teachers:
    """The teachers that a recipe needs.

    Args:
        model: the student, as it is at the start.
        recipe: of the run.
        foreign: the network that the recipe names, if it does.

    Raises:
        InputError: if the recipe names a network that is not given, or none for one that is.
    """
    name = recipe.teacher.model
    if foreign is not None and name is None:
        raise InputError("a teacher is given, but the recipe names none: set its teacher.model")
    if not recipe.asks_foreign_teacher:
        foreign = None
    elif foreign is None:
        raise InputError(f"the recipe's teacher is {name}: give that network, as ForeignTeacher")
    return Teachers(dense_teacher(model) if recipe.taught_by_dense_self else None, foreign)
