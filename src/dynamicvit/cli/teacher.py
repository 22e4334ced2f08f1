"""The options of `dynamicvit train` that name another teacher than the model's dense self."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.cli.console import say
from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.training import Recipe
from dynamicvit.training.external_teacher import ForeignTeacher

TeacherName = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        help="Distil the logits of another network, by timm's name; else of the dense MODEL.",
    ),
]
TeacherCheckpoint = Annotated[
    Path | None,
    typer.Option(help="Weights for the teacher: .safetensors or .pth.", readable=False),
]


def with_teacher(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe with the teacher that a command names, if it does."""
    if name is None:
        return recipe
    teacher = recipe.teacher.model_copy(update={"model": name})
    return recipe.model_copy(update={"teacher": teacher})


def foreign_teacher(
    student: DynamicViT,
    recipe: Recipe,
    checkpoint: Path | None,
    *,
    pretrained: bool,
    console: Console,
) -> ForeignTeacher | None:
    """The other network that the recipe names, if a loss looks at it.

    Args:
        student: the model that learns from it.
        recipe: of the run.
        checkpoint: its weights; else timm's.
        pretrained: whether timm's are loaded.
        console: says so if it is not asked.

    Raises:
        InputError: if it can't be had or does not fit the student.
    """
    name = recipe.teacher.model
    if name is None and checkpoint is not None:
        raise InputError(f"--teacher-checkpoint {checkpoint}: give its network with --teacher NAME")
    if name is None:
        return None
    if not recipe.asks_foreign_teacher:
        say(console, f"teacher {name} is not asked: losses.distillation is 0")
        return None
    return ForeignTeacher(load_dense(name, checkpoint, pretrained=pretrained), student)
