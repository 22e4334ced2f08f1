"""Checkpoints: whole or not at all, the last two and the best, and only of the same run."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dynamicvit.checkpoints.runs import NEWEST, PREVIOUS, holds_run
from dynamicvit.errors import InputError
from dynamicvit.training.checkpoint_file import DamagedError, load_checkpoint, write_checkpoint
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipes import modern
from dynamicvit.utils.files import atomic_write, remove_unfinished
from dynamicvit.utils.words import first_line

_log = logging.getLogger(__name__)

BEST = "checkpoint.best.pt"
#: What may differ when a run goes on: the weights say themselves whether they fit the model.
_NO_MATTER = {"model"}
_DEFAULTS = Recipe.model_construct().model_dump(mode="json")

#: A newest checkpoint that could not be read; kept, for whoever wants to know why.
DAMAGED = "checkpoint.damaged.pt"


def keep_checkpoint(state: dict[str, Any], folder: Path, *, best: bool = False) -> None:
    """Write a state; what was the newest becomes the previous one.

    At every moment there is a whole newest checkpoint or, had it been damaged, a previous one.

    Args:
        state: tensors and plain values.
        folder: where.
        best: keep this one as the best, too.

    Raises:
        InputError: if it can't be written; the ones before are still there.
    """
    newest = folder / NEWEST
    try:
        with atomic_write(newest, ours=True) as draft:
            write_checkpoint(state, draft)
            if best:  # first: after a kill in between, the run comes by here again
                _link(draft, folder / BEST)
            if newest.exists():
                _link(newest, folder / PREVIOUS)
        _sync_names(folder)
    # torch's writer says RuntimeError where the disk said OSError.
    except (OSError, RuntimeError) as error:
        raise cannot_write(newest, error) from error


def cannot_write(path: Path, error: BaseException) -> InputError:
    """What to say when the disk is full, or gone."""
    causes = (error, error.__cause__, error.__context__)
    cause = next((each for each in causes if isinstance(each, OSError)), error)
    reason = getattr(cause, "strerror", None) or first_line(cause)
    left = "the last checkpoint is whole" if holds_run(path.parent) else "there is no checkpoint"
    return InputError(
        f"{path} can't be written ({reason}); {left}: make room, then the same command resumes"
    )


class MisfitError(InputError):
    """A checkpoint of another model, or one whose parts don't fit together."""


def restore_newest(
    folder: Path, take: Callable[[dict[str, Any], Path], None], *, tidy: bool = True
) -> None:
    """Give ``take`` the newest state that it can use; one that is damaged is reported.

    Args:
        folder: of the run.
        take: a state and its file; raises :class:`DamagedError` or :class:`MisfitError`.
        tidy: set the damaged file aside, and remove what a killed run left half-written; of several
            processes one does.

    Raises:
        InputError: if there is none, none that can be used, or it is of another version.
    """
    newest, previous = folder / NEWEST, folder / PREVIOUS
    if tidy:
        remove_unfinished(folder)
    if not newest.exists() and previous.exists():
        take(load_checkpoint(previous), previous)
        return
    try:
        take(load_checkpoint(newest), newest)
        return
    except (DamagedError, MisfitError) as error:
        problem = error
    if not previous.exists():
        raise problem
    try:
        take(load_checkpoint(previous), previous)
    except DamagedError as error:
        raise InputError(f"{problem}; {error}; start anew in another folder") from None
    except MisfitError:  # then it is no damage
        raise problem from None
    _log.warning("%s: going on from %s", problem, previous)
    if tidy:  # or the next save would make it the previous one
        newest.rename(folder / DAMAGED)


def check_same_run(
    state: Mapping[str, Any],
    path: Path,
    recipe: Recipe,
    *,
    epoch_steps: int,
    processes: int,
    images: str | None = None,
    external_teacher: str | None = None,
    force: bool = False,
) -> None:
    """Refuse a checkpoint of a run that did something else.

    Args:
        state: of the checkpoint.
        path: of the checkpoint, for the message.
        recipe: of the run that is to go on.
        epoch_steps: its steps in an epoch.
        images: a digest of its images, if they have one.
        processes: how many it has. Another number is no obstacle: it is said, no more.
        external_teacher: the fingerprint of the network that it has as teacher, if it has one.
        force: go on in spite of differences, which are then said.

    Raises:
        InputError: naming what differs.
    """
    before = {"method": "dynamicvit", **modern(state["recipe"])}  # older ones name none
    found = differences(before, recipe.model_dump(mode="json"))
    known = state.get("external_teacher", state.get("foreign_teacher"))  # as 0.1.0 called it
    told = _names("teacher.model", found)
    if not told and known and external_teacher and known != external_teacher:
        found.append(f"weights of the teacher {known[:8]} -> {external_teacher[:8]} (SHA-256)")
    if state["epoch_steps"] != epoch_steps:
        found.append(f"steps in an epoch {state['epoch_steps']} -> {epoch_steps} (other data?)")
    elif (before := state.get("images")) and images and before != images:
        found.append(f"names, sizes or labels of the images {before[:8]} -> {images[:8]} (SHA-256)")
    if found and not force:
        ways = ["take the old values", "choose another folder"]
        if not _names("method", found):  # its modules have other weights
            ways.append("go on all the same with --force")
        raise InputError(
            f"{path} belongs to another run: {', '.join(found)}; "
            f"{', '.join(ways[:-1])} or {ways[-1]}"
        )
    if found:
        _log.warning("going on in spite of %s", ", ".join(found))
    if state["processes"] != processes:
        _log.warning(
            "%s was written by %d process(es), now there are %d: the batches and decisions stay "
            "the same, sums are rounded in another order",
            path,
            state["processes"],
            processes,
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``key old -> new`` for each value of two recipes that differs and matters."""
    # A recipe that is older than a key had what is now the key's default.
    before, after = {**_flat(_DEFAULTS), **_flat(old)}, _flat(new)
    return [
        f"{key} {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and key not in _NO_MATTER
    ]


def _link(source: Path, target: Path) -> None:
    """A second name for a file that is never changed, in place of what had that name."""
    with atomic_write(target, ours=True) as draft:
        try:
            os.link(source, draft)
        except OSError:  # a file system without links
            shutil.copyfile(source, draft)


def _sync_names(folder: Path) -> None:
    """Make a rename outlive a power cut; not every system lets a folder be synced."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _names(key: str, found: Iterable[str]) -> bool:
    return any(difference.startswith(f"{key} ") for difference in found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat
