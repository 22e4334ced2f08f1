"""What messages say, in few words."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from datetime import timedelta

#: Measures on held-out images.
MEASURES = {"top1": "top-1", "miou": "mIoU", "agreement": "agreement with the dense model"}

#: Of a duration: Python's own end at a milliard days.
_MOST_SECONDS = 8e13


def first_few(what: str, names: Sequence[str], limit: int = 3) -> str:
    """``what`` and the first names, with the number of the others; empty without names."""
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what} {', '.join(names[:limit])}{more}"


def duration(seconds: float) -> str:
    """Days, hours, minutes and seconds."""
    return str(timedelta(seconds=round(min(seconds, _MOST_SECONDS))))


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of another library's error, cut after a sentence or with an ellipsis."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if len(line) <= limit:
        return line
    sentences, stop, _ = line[:limit].rpartition(". ")
    return f"{sentences}." if stop else f"{line[:limit].rpartition(' ')[0] or line[:limit]}…"


def inputs_called(frames: int | None) -> str:
    """What a network of clips of so many frames takes, or of images for ``None``."""
    return "images" if frames is None else "clips"


def percent(share: float, digits: int = 1) -> str:
    """A fraction in percent: ``"97.2 %"``."""
    return f"{100 * share:.{digits}f} %"


_shortly = reprlib.Repr()
_shortly.maxstring = _shortly.maxother = _shortly.maxlong = 60
_shortly.maxlevel = 3


def shortened(value: object) -> str:
    """A value in a few words, as messages give it."""
    try:
        return _shortly.repr(value)
    except ValueError:  # of a number of too many digits
        return "a number of thousands of digits"
