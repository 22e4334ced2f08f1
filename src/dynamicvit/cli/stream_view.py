"""The display of `dynamicvit stream`, and its summary."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dynamicvit.cli.console import LineNowAndThen, print_error, say
from dynamicvit.streaming import Answer, Change, Event, Missed, Tally, UnreadableFrame
from dynamicvit.utils.words import percent

#: Seconds between updates.
_REFRESH = 0.25

#: Unreadable frames that are named; all are in the JSON lines.
_NAMED = 10

_PARTS = ("latency", "waiting", "computing")


class View:
    """Live statistics of the last frames on a terminal; elsewhere a line a minute.

    Args:
        console: for events.
        tally: of the events, each counted before it is shown.
    """

    def __init__(self, console: Console, tally: Tally) -> None:
        self._console = console
        self._tally = tally
        errors = Console(stderr=True)  # so that the output can be piped
        self._live = Live(console=errors, transient=True) if errors.is_terminal else None
        self._lines = LineNowAndThen(errors)
        self._shown = -_REFRESH

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, event: Event, dropped: int) -> None:
        """Show an event; ``dropped`` counts frames so far."""
        if isinstance(event, Change | Missed):
            what = (
                f"{event.before} -> {event.after}"
                if isinstance(event, Change)
                else f"not even {event.level} holds the target"
            )
            say(
                self._console,
                f"frame {event.index}: {what}; nine of ten frames took up to "
                f"{event.measured * 1e3:.1f} ms, target {event.target * 1e3:g} ms",
            )
        elif isinstance(event, UnreadableFrame) and self._tally.unreadable <= _NAMED:
            print_error(event.problem)
        elif isinstance(event, Answer):
            self._update(event, dropped)

    def _update(self, answer: Answer, dropped: int) -> None:
        now = time.monotonic()
        if now - self._shown < _REFRESH:
            return
        self._shown = now
        best = answer.classes[0]
        state = (
            f"frame {answer.index}, {self._tally.recent_rate:.1f} a second, {dropped} dropped, "
            f"{answer.level}: {best.name} ({percent(best.probability, 0)})"
        )
        recent = {part: self._tally.recent(part) for part in _PARTS}
        if self._live is not None:
            # Made here, as the numbers change while the other thread draws.
            line = Text(state, no_wrap=True, overflow="ellipsis")
            self._live.update(Group(_table(recent, 1e3), line))
        else:
            latency = ", ".join(f"{name} {s * 1e3:.1f}" for name, s in recent["latency"].items())
            self._lines.say(f"{state}; latency {latency} ms")


def print_summary(console: Console, source: str, summary: dict[str, Any]) -> None:
    """Print the :meth:`~dynamicvit.streaming.Tally.summary` of a source."""
    unreadable = summary["unreadable"]
    say(
        console,
        f"{source}: {summary['frames']} frames in {summary['seconds']:.1f} s, "
        f"{summary['fps']:.1f} a second; {summary['dropped']} dropped"
        + (f", {unreadable} unreadable" if unreadable else ""),
    )
    if not summary["frames"]:
        return
    console.print(_table({part: summary[f"{part}_ms"] for part in _PARTS}), highlight=False)
    if "changes" in summary:
        levels = ", ".join(
            f"{level['frames']} frames at "
            + ("its own ratios" if level["keep_ratio"] is None else f"ρ {level['keep_ratio']:.3g}")
            for level in summary["levels"]
        )
        share = summary["within_target"]
        say(
            console,
            f"{percent(share)} within the target; {levels}; {summary['changes']} changes",
        )


def _table(parts: dict[str, dict[str, float]], unit: float = 1.0) -> Table:
    """Percentiles, a row for each part."""
    table = Table(box=None, pad_edge=False)
    table.add_column("ms")
    for name in parts["latency"]:
        table.add_column(name, justify="right")
    for part, values in parts.items():
        table.add_row(part, *(f"{value * unit:.1f}" for value in values.values()))
    return table
