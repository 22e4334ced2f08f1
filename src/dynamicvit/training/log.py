"""The log of a run: a line of JSON for each step."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamicvit.errors import InputError

if TYPE_CHECKING:
    from dynamicvit.training.state import Progress

LOG_NAME = "log.jsonl"


def to_line(progress: Progress) -> str:
    """A step as JSON and a newline; what is not finite is ``null``, for which JSON has a word."""
    return json.dumps(_plain(asdict(progress)), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps of a log, in the order in which they were made.

    Raises:
        InputError: for a line that is no JSON, with its number.
    """
    steps = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not a step's JSON ({error.msg})") from None
    return steps
