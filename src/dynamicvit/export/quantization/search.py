"""How few layers must stay in float for a file that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_File = TypeVar("_File")


def fewest_in_float(
    write: Callable[[frozenset[str]], _File],
    drop: Callable[[_File], float],
    always: frozenset[str],
    order: Sequence[str],
    max_drop: float,
) -> _File | None:
    """The file with the fewest layers in float whose drop is small enough.

    Doubles the number of layers until it is enough, then halves what lies between: files take long
    to write. That a longer start of the order never loses more is taken for granted in between, and
    what is returned was measured.

    Args:
        write: makes the file with these layers in float.
        drop: points that a file loses.
        always: layers in float anyway.
        order: the others, those to try first in front.
        max_drop: points that may be lost.

    Returns:
        The file, or ``None`` if even with all layers in float too much is lost.
    """

    def attempt(count: int) -> _File | None:
        file = write(always | frozenset(order[:count]))
        return file if drop(file) <= max_drop else None

    found, too_few, count = attempt(0), 0, 0
    while found is None and count < len(order):
        too_few, count = count, min(max(1, 2 * count), len(order))
        found = attempt(count)
    while found is not None and count - too_few > 1:
        middle = (count + too_few) // 2
        better = attempt(middle)
        if better is None:
            too_few = middle
        else:
            found, count = better, middle
    return found
