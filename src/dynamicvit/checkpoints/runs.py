"""The folder of a training run, told by its files: whether there is one, and how far it is."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub.constants import CONFIG_NAME

from dynamicvit.errors import InputError

NEWEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
LOG_NAME = "log.jsonl"

DENSE_FOLDER = "dense"
"""Of a run's folder: the dense model that was fitted first, with its log and checkpoints."""


def holds_run(folder: Path) -> bool:
    """Whether there is a run to go on with."""
    return any((folder / name).exists() for name in (NEWEST, PREVIOUS))


def refuse_unfinished(folder: Path) -> None:
    """Refuse the folder of a run that has not written its model yet.

    Raises:
        InputError: naming the step at which it stopped, and how to resume it.
    """
    dense = folder / DENSE_FOLDER
    if (folder / CONFIG_NAME).exists() or not (holds_run(folder) or holds_run(dense)):
        return
    part = folder if holds_run(folder) else dense
    which = " of its dense model" if part is dense else ""
    raise InputError(
        f"{folder} is an unfinished run, stopped after {_progress(part / LOG_NAME)}{which}: the "
        f"dynamicvit train command that began it resumes it (-o {folder})"
    )


def _progress(log: Path) -> str:
    """How many steps a log has, of how many."""
    try:
        last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        return f"step {last['step'] + 1:,} of {last['steps']:,}"
    except (OSError, ValueError, LookupError, TypeError):
        return "an unknown number of steps"
