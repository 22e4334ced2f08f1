"""What files say, checked before it is used: one table of fields, for every kind of file.

A config, an image processor, the metadata of weights and of exported files: each may say anything.
Names are timm's and transformers', whose meanings agree.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import read_text
from dynamicvit.utils.words import first_line, shortened

#: Far above any model: what is larger would take all memory, or minutes, before it fails.
MOST_BLOCKS, MOST_WIDTH, MOST_SIDE, MOST_STAGES = 1000, 1 << 16, 1 << 14, 16
MOST_CLASSES, MOST_CHANNELS, MOST_TOKENS, MOST_FRAMES = 1 << 20, 1 << 10, 1 << 20, 1 << 12
#: Of anything: a number, how deep values are nested, and how many there are.
MOST_NUMBER, DEEPEST, MOST_VALUES = 1 << 24, 32, 1 << 20


#: Of a recipe: where float32 ends, and what images, epochs and steps are counted to.
MOST_OF_RECIPES, MOST_COUNT = 1e30, 10**12


class Kind(NamedTuple):
    """The values that a field may have, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def number(least: float, most: float, *, above: bool = False) -> Kind:
    """A number of a range, its ends included, the lower one unless ``above``."""
    words = f"a number {'above' if above else 'from'} {least:g} {'and up ' if above else ''}to"
    return Kind(
        f"{words} {most:g}",
        lambda value: (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and least <= value <= most
            and not (above and value == least)
        ),
    )


def whole(least: int, most: int) -> Kind:
    """A whole number of a range, its ends included."""
    return Kind(
        f"a whole number from {least} to {most:,}",
        lambda value: type(value) is int and least <= value <= most,
    )


def each(kind: Kind, least: int, most: int) -> Kind:
    """A list of so many values of a kind."""
    count = str(least) if least == most else f"{least} to {most:,}"
    return Kind(
        f"a list of {count}, each {kind.words}",
        lambda value: (
            isinstance(value, list | tuple)
            and least <= len(value) <= most
            and all(map(kind.holds, value))
        ),
    )


def either(*kinds: Kind) -> Kind:
    """Any of several kinds."""
    return Kind(
        ", or ".join(kind.words for kind in kinds),
        lambda value: any(kind.holds(value) for kind in kinds),
    )


def one_of(*values: str) -> Kind:
    """One of several words."""
    return Kind(
        f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values
    )


TEXT = Kind("text", lambda value: isinstance(value, str))
FILE_NAME = Kind(
    "the name of a file, without a folder",
    lambda value: (
        isinstance(value, str)
        and 0 < len(os.fsencode(value)) < 256
        and not {"/", "\\", "\0"}.intersection(value)
    ),
)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
_NAMES = Kind(
    "a list of names, or of numbers",
    lambda value: (
        isinstance(value, list | tuple)
        and len(value) <= MOST_CLASSES
        and all(type(name) in (str, int) for name in value)
    ),
)
_NAMES_BY_CLASS = Kind(
    "names by class",
    lambda value: (
        isinstance(value, dict)
        and len(value) <= MOST_CLASSES
        and all(type(name) in (str, int) for name in value.values())
    ),
)
_NUMBERS_BY_NAME = Kind(
    "class numbers by name",
    lambda value: isinstance(value, dict) and all(type(label) is int for label in value.values()),
)
_SIDE, _CHANNELS = whole(1, MOST_SIDE), whole(1, MOST_CHANNELS)
_PAIR = either(_SIDE, each(_SIDE, 2, 2))
_IMAGE = each(_SIDE, 3, 3)
_SHARE, _PROBABILITY = number(0, 1, above=True), number(0, 1)
#: Less would resize an image to many times its size.
CROP = number(0.05, 1)
_BLOCKS, _WIDTH = whole(1, MOST_BLOCKS), whole(1, MOST_WIDTH)
_SIZES = Kind(
    f"{_SIDE.words}, or such numbers by height and width, or shortest_edge",
    lambda value: (
        _PAIR.holds(value)
        or (
            isinstance(value, dict)
            and bool(value)
            and all(map(_OPTIONAL_SIDE.holds, value.values()))
        )
    ),
)
_OPTIONAL_SIDE = either(_SIDE, Kind("null", lambda value: value is None))
_EPSILON = number(0, 1)
_COUNT = either(Kind("null", lambda value: value is None), whole(0, 1 << 62))

#: How images are resized, in the order of Pillow's numbers: newer ones have more than timm takes.
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

FIELDS: dict[str, Kind] = {
    # timm's pretrained_cfg, and the metadata of exported files
    "architecture": TEXT,
    "num_classes": whole(0, MOST_CLASSES),
    **dict.fromkeys(("input_size", "test_input_size", "min_input_size"), _IMAGE),
    **dict.fromkeys(("crop_pct", "test_crop_pct"), CROP),
    "interpolation": one_of(*RESAMPLING),
    "crop_mode": one_of("center", "squash", "border"),
    **dict.fromkeys(("mean", "image_mean"), each(number(-1000, 1000), 1, MOST_CHANNELS)),
    **dict.fromkeys(("std", "image_std"), each(number(1e-6, 1e6), 1, MOST_CHANNELS)),
    "label_names": _NAMES,
    "labels": _NAMES,
    "label_descriptions": either(_NAMES, _NAMES_BY_CLASS),
    "fixed_input_size": SWITCH,
    # arguments of timm.create_model
    "depth": _BLOCKS,
    **dict.fromkeys(("embed_dim", "num_heads"), either(_WIDTH, each(_WIDTH, 1, MOST_STAGES))),
    "stem_width": _WIDTH,
    "depths": each(_BLOCKS, 1, MOST_STAGES),
    "dims": each(_WIDTH, 1, MOST_STAGES),
    **dict.fromkeys(("img_size", "patch_size", "image_size"), _PAIR),
    "in_chans": _CHANNELS,
    **dict.fromkeys(("num_frames", "frames_per_clip"), whole(1, MOST_FRAMES)),
    "tubelet_size": either(whole(1, MOST_FRAMES), each(_SIDE, 3, 3)),
    **dict.fromkeys(("num_pooler_layers", "pred_num_hidden_layers"), whole(0, MOST_BLOCKS)),
    "mlp_ratio": number(0, 1000, above=True),
    "reg_tokens": whole(0, MOST_WIDTH),
    # transformers' configs
    "model_type": TEXT,
    "num_hidden_layers": _BLOCKS,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), _WIDTH),
    "num_channels": _CHANNELS,
    "num_labels": whole(0, MOST_CLASSES),
    "id2label": _NAMES_BY_CLASS,
    "label2id": _NUMBERS_BY_NAME,
    "layer_norm_eps": _EPSILON,
    "initializer_range": number(0, 1000),
    # transformers' image processors
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_center_crop"), SWITCH),
    **dict.fromkeys(("size", "crop_size"), _SIZES),
    "resample": whole(0, len(RESAMPLING) - 1),
    "rescale_factor": number(1e-6, 1e6),
    "image_processor_type": TEXT,
    # DynamicViT's
    "format_version": whole(0, MOST_NUMBER),
    "backbone_source": TEXT,
    "method": TEXT,
    "stages": each(whole(0, MOST_BLOCKS), 0, MOST_BLOCKS),
    "keep_ratios": each(_SHARE, 0, MOST_BLOCKS),
    "keep_ratio": either(_SHARE, each(_SHARE, 0, MOST_BLOCKS)),
    "policy": one_of("removed", "merged", "bypassed", "cheap"),
    "restore_before": whole(0, MOST_BLOCKS),
    "fingerprint": TEXT,
    "num_patches": whole(1, MOST_TOKENS),
    # of exported files alone
    "model": TEXT,
    "version": TEXT,
    "batch": whole(1, MOST_NUMBER),
    "grid": each(_SIDE, 2, 3),
    "frames": whole(1, MOST_FRAMES),
    "kept": each(whole(1, MOST_TOKENS), 0, MOST_BLOCKS),
    "precision": one_of("fp32", "int8"),
    "task": one_of("classification", "segmentation"),
    "map_size": each(_SIDE, 2, 2),
    # of segmentation models
    "ignore_index": whole(-MOST_NUMBER, MOST_NUMBER),
    "reduce_labels": SWITCH,
    # the metadata of released weights
    "rho": _SHARE,
    "residual_divisor": number(0, 1e6, above=True),
    "kind": TEXT,
    # the report of a training run
    "training": Kind("a mapping", lambda value: isinstance(value, dict)),
    **dict.fromkeys(("images", "steps"), _COUNT),
    "top1": _PROBABILITY,
}
"""The fields whose values are checked wherever they stand; null is left to their readers."""

#: Under these, keys are names of classes.
_LABELS = ("label_descriptions", "id2label", "label2id")


def read_json(path: str | Path) -> Any:
    """The values of a file of JSON, checked by :func:`check_values`.

    Raises:
        InputError: likewise; for a file that can't be read or is not JSON.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path}: can't be read ({reason})") from error
    return parse_json(text, path)


def parse_json(text: str, source: object, most: float = MOST_NUMBER) -> Any:
    """The values of JSON, checked by :func:`check_values`.

    Raises:
        InputError: likewise, naming the source; for other text.
    """
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise InputError(f"{source}: its values are nested too deep") from error
    except ValueError as error:
        raise InputError(f"{source}: truncated or not JSON ({first_line(error)})") from error
    check_values(values, source, most)
    return values


def check_values(values: Any, source: object, most: float = MOST_NUMBER) -> None:
    """Check that values are of a sane size, and the fields among them of their kinds.

    Args:
        values: any, such as a parsed file.
        source: how messages begin.
        most: as for :func:`check_size`.

    Raises:
        InputError: for a field of another kind; likewise.
    """
    check_size(values, source, most)
    _check_fields_below(values, source, "")


def check_fields(values: Mapping[str, Any], source: object, place: str = "") -> None:
    """Check the fields of a mapping, and not what is below them; see :func:`check_values`."""
    for name, value in values.items():
        kind = FIELDS.get(name) if isinstance(name, str) else None
        if kind is not None and value is not None and not kind.holds(value):
            raise InputError(
                f"{source}: {_below(place, name)} must be {kind.words}, got {shortened(value)}"
            )


def _check_fields_below(values: Any, source: object, place: str) -> None:
    if isinstance(values, Mapping) and not place.endswith(_LABELS):
        check_fields(values, source, place)
        for name, value in values.items():
            _check_fields_below(value, source, _below(place, name))
    elif isinstance(values, list | tuple):
        for value in values:
            _check_fields_below(value, source, place)


def check_size(values: Any, source: object, most: float = MOST_NUMBER) -> None:
    """Check that values are few enough, finite, and text that can be written.

    Args:
        values: any, such as a parsed file.
        source: how messages begin.
        most: the largest number.

    Raises:
        InputError: for values nested too deep, or too many; numbers that are not finite, or too
            large; text with half a character.
    """
    count, level = 0, [("", values)]
    for _ in range(DEEPEST):
        below: list[tuple[str, Any]] = []
        for place, value in level:
            _check_value(value, place, source, most)
            if isinstance(value, Mapping):
                below += ((f"a name in {place}", name) for name in value)
                below += ((_below(place, name), each) for name, each in value.items())
            elif isinstance(value, list | tuple | set):
                below += ((place, each) for each in value)
            if count + len(below) > MOST_VALUES:
                raise InputError(f"{source}: it has more than {MOST_VALUES:,} values")
        count, level = count + len(below), below
        if not level:
            return
    raise InputError(f"{source}: its values are nested more than {DEEPEST} deep")


def _check_value(value: Any, place: str, source: object, most: float) -> None:
    named = f"{source}: {place}" if place else f"{source}"
    if isinstance(value, int | float) and not abs(value) <= most:
        raise InputError(
            f"{named} must be a finite number of at most {most:g}, got {shortened(value)}"
        )
    try:
        _ = value.encode() if isinstance(value, str) else None
    except UnicodeEncodeError:
        raise InputError(f"{named} must be text, got {shortened(value)}") from None


def _below(place: str, name: object) -> str:
    """The place of a value in a mapping."""
    name = name if isinstance(name, str) and len(name) < 60 else shortened(name)
    return f"{place}.{name}" if place else name
