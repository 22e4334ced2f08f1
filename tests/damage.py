"""Damage to what files say: values of other types and sizes, keys lost, text cut and nested.

Every function takes a ``random.Random``: hypothesis's own, which it can make smaller, or a seeded
one.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

#: How deep a nested value is: more than Python's parsers recurse.
DEEP = 10_000

#: What is put in place of any value. A nested value stands for itself until the text is made.
NESTED_LIST, NESTED_DICT = "@nested list@", "@nested dict@"
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1000, 10**7, 2**31, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, -0.5, 0.5, 1.0, 1.5, 5e-324, 1e300, -1e300, math.nan, math.inf, -math.inf),
    *("", "x", "0.5", "nan", "é\u0000\ud800"[:2], "two\nlines", "../../etc", "a" * 20_000),
    *([], [0], [0, 0, 0], [0.0] * 3, [1e-300] * 3, ["a", "b", "c"], [None], [[1]], [1] * 10_000),
    *([0.5, math.nan, 0.5], [0.5, math.inf, 0.5], [2**40, 2**40], [10**6] * 3, [-1, -1]),
    *({}, {"a": 1}, {"": None}, {"height": 10**9, "width": -1}, {"0": 1}, NESTED_LIST, NESTED_DICT),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every value in lists and dictionaries."""
    if path:
        yield path
    entries = tree.items() if isinstance(tree, dict) else ()
    for key, value in enumerate(tree) if isinstance(tree, list) else entries:
        yield from places(value, (*path, key))


def damaged(tree: Any, random: Random, keys: tuple[str, ...] = ()) -> Any:
    """A copy with one to three values replaced, removed, or added under one of the keys."""
    tree = copy.deepcopy(tree)
    for _ in range(random.randint(1, 3)):
        known = list(places(tree))
        if not known:
            return tree
        *parents, last = known[random.randrange(len(known))]
        inner = tree
        for key in parents:
            inner = inner[key]
        act = random.randrange(6)
        if act == 0:
            del inner[last]
        elif act == 1 and keys and isinstance(inner, dict):
            inner[keys[random.randrange(len(keys))]] = copy.deepcopy(ODD[_odd(random)])
        elif act == 2:
            inner[last] = _near(inner[last], random)
        else:
            inner[last] = copy.deepcopy(ODD[_odd(random)])
    return tree


def _odd(random: Random) -> int:
    return random.randrange(len(ODD))


def _near(value: Any, random: Random) -> Any:
    """The same in other words: a number as text or in a list, a list one longer."""
    kinds = (str(value), [value], {"value": value}, value)
    if isinstance(value, list):
        return [*value, *value[:1]] if random.randrange(2) else value[:-1]
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        kinds = (*kinds, -value, value + 0.5, value * 1000, value + 1, value * 10**9)
    return kinds[random.randrange(len(kinds))]


def as_json(tree: Any) -> str:
    """JSON with the nested values written out; also of NaN and infinities, as Python writes."""
    text = json.dumps(tree)
    text = text.replace(json.dumps(NESTED_LIST), "[" * DEEP + "]" * DEEP)
    return text.replace(json.dumps(NESTED_DICT), '{"a":' * DEEP + "1" + "}" * DEEP)


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Bytes cut, changed, doubled, or in another encoding."""
    if not content:
        return b"\0"
    act = random.randrange(8)
    place = random.randrange(len(content))
    if act == 0:
        return content[:place]
    if act == 1:
        return b"\xef\xbb\xbf" + content
    if act == 2:
        return content.decode("latin-1").encode("utf-16")
    if act == 3:
        return content[:place] + b"\xff\xfe" + content[place:]
    if act == 4:
        return content.replace(b'{"', b'{"a": 1, "a": 2, "', 1)
    if act == 5:
        return (b"", b"null", b"[]", b"1", b'"x"', b"[" * DEEP, b'{"a":' * DEEP, b"\0" * 100)[
            random.randrange(8)
        ]
    changed = bytearray(content)
    for _ in range(random.randint(1, 8)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)
