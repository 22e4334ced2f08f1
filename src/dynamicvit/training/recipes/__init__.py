"""Recipes as YAML: the built-in ones, one file each, and anyone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dynamicvit.errors import InputError
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipe_parts import (
    AugmentRecipe,
    DenseRecipe,
    LossRecipe,
    SegmentationRecipe,
    Strict,
    TeacherRecipe,
    VideoRecipe,
)
from dynamicvit.utils.fields import DEEPEST, MOST_OF_RECIPES, check_size
from dynamicvit.utils.inputs import is_file, read_text
from dynamicvit.utils.words import shortened

#: Version of the recipes that this code writes, and the newest that it reads.
VERSION = 2

#: Of a recipe, which is a page of text: PyYAML takes a second for some 20 KB.
RECIPE_BYTES = 1 << 16
#: How many recipes may change one another.
MOST_BASES = 20

#: Keys of version 1 and what they are called now, with the values that have new names.
_RENAMED: dict[str, tuple[str, dict[Any, str]]] = {
    "dropped": ("policy", {"gone": "removed"}),
    "leave": ("masking", {"never": "full", "late": "lagged", "at once": "compact"}),
    "share_stem": ("share_first_blocks", {}),
}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    A file names the recipe that it changes, ``base: small_data``: a built-in one, or another file,
    beside it. A part such as ``losses`` is changed value by value.

    Args:
        name_or_path: a built-in recipe (:func:`recipe_names`) or a YAML file.
        overrides: ``key=value`` with dots into the parts, ``losses.classification=0``.

    Raises:
        InputError: for a recipe that does not exist or has no base, an unknown key (with those that
            there are), or a value that can't be.
    """
    values = _with_base(name_or_path)
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        by = _override_of(error, overrides)
        where = f"recipe {name_or_path}" if by is None else f"override {shortened(by)}"
        raise InputError(f"{where}: {_first_problem(error)}") from None


def resolved(
    recipe: str | Path | Recipe, overrides: Sequence[str] = (), teacher: str | None = None
) -> Recipe:
    """The values of a recipe that is named or read already, with another network as teacher."""
    values = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe), overrides)
    if teacher is None:
        return values
    asked = values.teacher.model_copy(update={"model": teacher})
    return values.model_copy(update={"teacher": asked})


def recipe_names() -> list[str]:
    """The built-in recipes."""
    folder = resources.files(__name__)
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def recipe_keys() -> list[str]:
    """What a recipe says, as overrides name it: ``batch_size``, ``losses.token``, ..."""
    keys = []
    for name in Recipe.model_fields:
        parts = _PARTS[name].model_fields if name in _PARTS else ()
        keys += [f"{name}.{part}" for part in parts] or [name]
    return keys


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, which :func:`load_recipe` reads back."""
    return yaml.safe_dump({"version": VERSION, **recipe.model_dump(mode="json")}, sort_keys=False)


def modern(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values under today's names; those of version 1 had others."""
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        key, names = _RENAMED.get(key, (key, {}))
        renamed[key] = names.get(value, value) if isinstance(value, str) else value
    return renamed


def _with_base(name_or_path: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's values over those of its base."""
    if name_or_path in seen:
        raise InputError(f"recipe {seen[0]}: its base leads back to {name_or_path}")
    if len(seen) > MOST_BASES:
        raise InputError(f"recipe {seen[0]}: has more than {MOST_BASES} bases, one on another")
    values = modern(_read(name_or_path))
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise InputError(f"recipe {name_or_path}: base must be a name, got {shortened(base)}")
    beside = Path(name_or_path).parent / base
    found = str(beside) if base not in recipe_names() and is_file(beside) else base
    return _over(_with_base(found, (*seen, name_or_path)), values)


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values in place of those of a base; of epochs and images one replaces the other."""
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key, {})
        part = key in _PARTS and isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = {**below, **value} if part else value
    for length, other in (("epochs", "images"), ("images", "epochs")):
        if values.get(length) is not None and other not in values:
            merged[other] = None
    return merged


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if name_or_path in recipe_names():
        text = (resources.files(__name__) / f"{name_or_path}.yaml").read_text()
    elif is_file(path):
        try:
            text = read_text(path, RECIPE_BYTES)
        except (UnicodeDecodeError, OSError) as error:
            reason = getattr(error, "strerror", None)
            problem = f"can't be read ({reason})" if reason else "is not text"
            raise InputError(f"recipe {name_or_path} {problem}") from None
    else:
        raise InputError(
            f"no recipe {shortened(name_or_path)}: give a YAML file or one of "
            f"{', '.join(recipe_names())}"
        )
    values = _parsed(text, f"recipe {name_or_path}")
    if not isinstance(values, dict):
        raise InputError(f"recipe {name_or_path} must hold keys and values")
    if not {"base", "version"} & values.keys() and name_or_path not in recipe_names():
        raise InputError(
            f"recipe {name_or_path} names no base: add `base: small_data`, for few images, or "
            "`base: deit_small`, the paper's, in batches of 1024"
        )
    version = values.pop("version", VERSION)
    if version not in range(1, VERSION + 1):
        raise InputError(
            f"recipe {name_or_path} is of version {shortened(version)}, this dynamicvit reads "
            f"versions up to {VERSION}: take the dynamicvit that it was written for"
        )
    return values


def _parsed(text: str, source: str) -> Any:
    """The values of YAML, of a sane size."""
    # Before PyYAML looks: open brackets in one line cost it seconds.
    if any(line.count("[") + line.count("{") > DEEPEST for line in text.splitlines()):
        raise InputError(f"{source}: more than {DEEPEST} brackets open in one line")
    try:
        values = yaml.safe_load(text)
    except RecursionError as error:
        raise InputError(f"{source}: its values are nested too deep") from error
    except Exception as error:  # of dates and tags too
        reason = " ".join(str(error).split())
        raise InputError(f"{source} is not YAML: {reason[:200]}") from error
    check_size(values, source, MOST_OF_RECIPES)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"override {shortened(override)} must be key=value")
    if key in _RENAMED:
        raise InputError(f"override {shortened(override)}: {key} is called {_RENAMED[key][0]} now")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"override {shortened(override)}: {parent} has no parts")
    values[last] = _parsed(text, f"override {shortened(override)}")
    if (
        not parents and last in ("epochs", "images") and values[last] is not None
    ):  # one replaces the other
        values["images" if last == "epochs" else "epochs"] = None


def _override_of(error: ValidationError, overrides: Sequence[str]) -> str | None:
    """The override that gave the value that can't be, if one did."""
    place = [str(each) for each in error.errors()[0]["loc"]]
    for override in overrides:
        key = override.partition("=")[0].split(".")
        if place[: len(key)] == key:
            return override
    return None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    # pydantic also names the member of a union; people know fields only.
    known = {*Recipe.model_fields}.union(*(part.model_fields for part in _PARTS.values()))
    unknown = problem["type"] == "extra_forbidden"
    place = ".".join(str(p) for p in problem["loc"] if unknown or p in known or isinstance(p, int))
    if unknown:
        part = _PARTS.get(str(problem["loc"][0]), Recipe) if "." in place else Recipe
        return f"unknown key {place!r}: one of {', '.join(part.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type":
        message = f"has the parts {', '.join(_PARTS[place].model_fields)}"
    # Where values don't fit together, the message has them.
    given = "" if problem["type"] == "value_error" else f", got {shortened(problem['input'])}"
    return f"{place}: {message}{given}" if place else message


#: What has parts of its own.
_PARTS: dict[str, type[Strict]] = {
    "losses": LossRecipe,
    "teacher": TeacherRecipe,
    "augment": AugmentRecipe,
    "dense": DenseRecipe,
    "segmentation": SegmentationRecipe,
    "video": VideoRecipe,
}
