"""Events as JSON: one object to a line."""

from __future__ import annotations

from typing import Any

from dynamicvit.streaming.levels import Level
from dynamicvit.streaming.loop import Answer, Change, Event, Unreadable
from dynamicvit.streaming.tally import milliseconds


def line_of(event: Event) -> dict[str, Any]:
    """An event for JSON; its kind is under ``event``, times of computing are in milliseconds."""
    if isinstance(event, Answer):
        return _answer(event)
    if isinstance(event, Unreadable):
        return {"event": "unreadable", "index": event.index, "problem": event.problem}
    latency = {
        "latency_ms": milliseconds(event.measured),
        "target_ms": milliseconds(event.target),
    }
    if isinstance(event, Change):
        levels = {"before": level_line(event.before), "after": level_line(event.after)}
        return {"event": "change", "index": event.index, **levels, **latency}
    return {"event": "missed", "index": event.index, **level_line(event.level), **latency}


def level_line(level: Level) -> dict[str, Any]:
    """A level for JSON; ``keep_ratio`` is null where one number does not say it all."""
    return {
        "model": level.model,
        "keep_ratio": level.keep_ratio,
        "keep_ratios": level.schedule.keep_ratios,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"event": "frame", "index": answer.index}
    if answer.time is not None:
        found["time"] = round(answer.time, 6)
    if answer.name is not None:
        found["file"] = answer.name
    return {
        **found,
        "classes": [
            {**each._asdict(), "probability": round(each.probability, 6)} for each in answer.classes
        ],
        "latency_ms": milliseconds(answer.latency),
        "waiting_ms": milliseconds(answer.waiting),
        "computing_ms": milliseconds(answer.computing),
        "keep_ratio": answer.level.keep_ratio,
        "dropped": answer.dropped,
    }
