"""Shards by braces: ``train-{0000..0127}.tar``."""

from __future__ import annotations

import re

from dynamicvit.data.decoding import one_line
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need

#: More are refused before they are listed, which could take all memory.
MOST_SHARDS = 100_000

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def expand(name: str, text: str) -> list[str]:
    """The paths that a text with braces stands for.

    Raises:
        InputError: for braces that don't close, or stand for more than :data:`MOST_SHARDS`.
    """
    check_braces(name, text)
    try:
        return need("webdataset.shardlists", "data").expand_urls(text)
    except ValueError as error:
        raise InputError(f"{name} can't be used ({one_line(error)})") from error


def check_braces(name: str, text: str) -> None:
    """Refuse braces that stand for more shards than there can be."""
    count = 1
    for inside in re.findall(r"\{([^{}]*)\}", text):
        found = _RANGE.match(inside)
        if found is None:
            count *= inside.count(",") + 1
        elif max(map(len, found.groups())) > 12:
            count = MOST_SHARDS + 1
        else:
            count *= abs(int(found[2]) - int(found[1])) + 1
        if count > MOST_SHARDS:
            raise InputError(f"{name} stands for more than {MOST_SHARDS:,} shards")
