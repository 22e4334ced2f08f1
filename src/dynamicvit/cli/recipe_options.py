"""The options of a recipe, which train and compare share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from dynamicvit.core.schedule_file import ScheduleFile
from dynamicvit.errors import InputError
from dynamicvit.training.recipes import recipe_keys, recipe_names

RECIPE = "Recipe"

_RECIPE = typer.Option(
    metavar="NAME",
    help=f"One of {', '.join(recipe_names())}; or a YAML file, which may change one of them: "
    "`base: small_data`.",
    rich_help_panel=RECIPE,
)
RecipeOption = Annotated[str, _RECIPE]
RecipeIfAny = Annotated[str | None, _RECIPE]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Change a value of the recipe; may be repeated. Keys: {', '.join(recipe_keys())}.",
        rich_help_panel=RECIPE,
    ),
]


def with_options(overrides: Sequence[str] | None, options: Mapping[str, Any]) -> list[str]:
    """The overrides, and those that options with a value of their own say.

    Args:
        overrides: of ``--set``.
        options: values by key of the recipe, which is also the option's name.

    Raises:
        InputError: for a key that is given twice.
    """
    given = {key: value for key, value in options.items() if value is not None}
    found: dict[str, str] = {}
    for override in overrides or ():
        key = override.partition("=")[0]
        if key in found:
            raise InputError(f"--set {found[key]} and --set {override}: give one")
        if key in given:
            option = f"--{key.replace('_', '-')}"
            raise InputError(f"--set {override} and {option} {given[key]}: give one")
        found[key] = override
    return [*found.values(), *(f"{key}={_yaml(value)}" for key, value in given.items())]


def _yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def schedule_values(found: ScheduleFile, method: str | None) -> dict[str, Any]:
    """The values of a recipe that a schedule's file says; a method that was named goes first."""
    schedule = found.schedule
    return {
        "stages": list(schedule.stages),
        "keep_ratio": list(schedule.keep_ratios),
        "policy": schedule.policy,
        "restore_before": schedule.restore_before,
        "method": method or found.method,
    }
