"""The folder of a run, beside its checkpoints: whether it may be one, its report and its curves."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynamicvit.checkpoints.addon import ADDON_NAME
from dynamicvit.checkpoints.runs import DENSE_FOLDER, LOG_NAME, NEWEST, holds_run
from dynamicvit.core.hub import MODEL_FILES
from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.training.checkpoint import BEST, DAMAGED, cannot_write
from dynamicvit.training.log import TENSORBOARD_FOLDER, read_log
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.state import TrainingReport
from dynamicvit.utils.files import write_text
from dynamicvit.utils.lock import refuse_owned
from dynamicvit.utils.optional import need
from dynamicvit.utils.outputs import WRITER, check_set, check_target, is_ours

_log = logging.getLogger(__name__)

RECIPE_NAME, REPORT_NAME, CURVES_NAME = "recipe.yaml", "report.json", "curves.png"


def check_output(folder: Path, resume: bool = False) -> bool:
    """Whether a folder holds a run to go on with.

    Args:
        folder: to write into; it need not be there.
        resume: there must be a run.

    Raises:
        InputError: if it is a file, holds a model, or no run where there must be one; if it holds
            files of others that a command must not replace; if another process is at work there.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give a folder")
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # TensorBoard and safetensors write there
        raise InputError(f"{str(folder)!a} is no name in UTF-8: give a folder of another") from None
    refuse_owned(folder)
    if holds_run(folder) or holds_run(folder / DENSE_FOLDER):
        _check_files(folder, (ADDON_NAME, REPORT_NAME, CURVES_NAME))
        check_set(folder / MODEL_FILES[0], MODEL_FILES[1:])  # weights of transformers have no mark
        return True
    if resume:
        raise InputError(f"{folder} holds no {NEWEST} to go on from")
    if (folder / "model.safetensors").exists():
        raise InputError(f"{folder} holds a model: choose another folder")
    names = (RECIPE_NAME, *MODEL_FILES, ADDON_NAME, REPORT_NAME, CURVES_NAME)
    _check_files(folder, names)
    if not is_ours(folder / RECIPE_NAME):
        _check_files(folder, (BEST, DAMAGED, LOG_NAME))
    return False


def _check_files(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if os.path.lexists(folder / name):
            check_target(folder / name)


def write_report(
    report: TrainingReport,
    model: DynamicViT,
    recipe: Recipe,
    teacher_checkpoint: str | Path | None,
    folder: Path,
) -> None:
    """Write ``report.json``: what was done, for which budget or budgets, and who taught.

    Raises:
        InputError: if the disk is full.
    """
    training = asdict(report)
    parts = ("held_out", "dense_held_out")
    evaluated = {part: value for part in parts if (value := training.pop(part)) is not None}
    checkpoint = teacher_checkpoint and str(teacher_checkpoint)
    numbers: dict[str, Any] = {
        "training": training,
        "keep_ratios": model.keep_ratios,
        "budgets": recipe.budgets,
        "policy": model.policy,
        **evaluated,
        "teacher": {**recipe.teacher.model_dump(), "checkpoint": checkpoint},
    }
    path = folder / REPORT_NAME
    try:
        write_text(path, json.dumps({"written_by": WRITER, **numbers}, indent=2) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def draw_run(output: Path) -> None:
    """Draw the log as ``curves.png``; a warning says why if it can't be drawn."""
    try:
        steps = read_log(output / LOG_NAME)
        if not steps:
            return
        need("matplotlib", "plots")
    except InputError as error:
        _log.warning("no picture of the curves: %s", error)
        return
    from dynamicvit.plots.curves import curves
    from dynamicvit.plots.style import save

    save(curves(steps), output / CURVES_NAME)


def take_back(output: Path) -> None:
    """Remove what a run has written, unless it has something to go on from."""
    dense = output / DENSE_FOLDER
    if holds_run(dense):
        return
    if dense.is_dir():
        take_back(dense)
        with suppress(OSError):  # it is not empty
            dense.rmdir()
    for name in (RECIPE_NAME, LOG_NAME):
        (output / name).unlink(missing_ok=True)
    events = output / TENSORBOARD_FOLDER
    for file in events.glob("events.out.tfevents.*"):
        file.unlink()
    if events.is_dir() and not any(events.iterdir()):
        events.rmdir()
