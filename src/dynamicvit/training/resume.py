"""Whether a checkpoint belongs to the run that is to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynamicvit.errors import InputError
from dynamicvit.training.recipe import Recipe

_log = logging.getLogger(__name__)

#: What may differ: the weights say themselves whether they fit the model.
_NO_MATTER = {"model"}
_DEFAULTS = Recipe.model_construct().model_dump(mode="json")


def check_same_run(
    state: Mapping[str, Any],
    path: Path,
    recipe: Recipe,
    *,
    epoch_steps: int,
    processes: int,
    foreign_teacher: str | None = None,
    force: bool = False,
) -> None:
    """Refuse a checkpoint of a run that did something else.

    Args:
        state: of the checkpoint.
        path: of the checkpoint, for the message.
        recipe: of the run that is to go on.
        epoch_steps: its steps in an epoch, which tell other data.
        processes: how many it has. Another number is no obstacle: it is said, no more.
        foreign_teacher: the fingerprint of the network that it has as teacher, if it has one.
        force: go on in spite of differences, which are then said.

    Raises:
        InputError: naming what differs.
    """
    found = differences(state["recipe"], recipe.model_dump(mode="json"))
    known = state.get("foreign_teacher")
    if known and foreign_teacher and known != foreign_teacher and not _names_a_teacher(found):
        found.append(f"weights of the teacher {known[:8]} -> {foreign_teacher[:8]} (SHA-256)")
    if state["epoch_steps"] != epoch_steps:
        found.append(f"steps in an epoch {state['epoch_steps']} -> {epoch_steps} (other data?)")
    if found and not force:
        raise InputError(
            f"{path} belongs to another run: {', '.join(found)}; take the old values, choose "
            "another folder, or go on all the same with --force"
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


def _names_a_teacher(found: Iterable[str]) -> bool:
    return any(difference.startswith("teacher.model ") for difference in found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat
