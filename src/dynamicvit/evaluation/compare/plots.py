"""Two plots for a paper: accuracy over MACs, and accuracy over measured throughput."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynamicvit.evaluation.compare.experiment import DENSE_NAME
from dynamicvit.evaluation.compare.table import Line

_INK, _FAINT = "#1b1f24", "#6b7280"
#: tab20 alternates full and pale tones; the full ones first.
_TONES = [colormaps["tab20"](tone) for tone in (*range(0, 20, 2), *range(1, 20, 2))]
#: Less than this share of the best is not drawn but named: it would press the others together.
_LEAST_SHARE = 0.6
_MARKERS = "osD^vP*X<>hd8pH"


def accuracy_over_macs(lines: Sequence[Line]) -> Figure:
    """Top-1 (agreement with dense, where there are no labels) over GMACs."""
    return _figure(lines, lambda line: line.gmacs, "GMACs of an image")


def accuracy_over_throughput(lines: Sequence[Line], batch_size: int) -> Figure:
    """The same over the measured ratio of throughputs at a batch size; dense is at 1."""

    def ratio(line: Line) -> float | None:
        if line.way == DENSE_NAME:
            return 1.0
        timing = line.timings.get(batch_size)
        return timing and timing.speedup

    return _figure(lines, ratio, f"throughput, times dense, batch {batch_size}")


def _figure(lines: Sequence[Line], position: Callable[[Line], float | None], title: str) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    has_labels = all(line.top1 is not None for line in lines)
    best = max((_accuracy(line, has_labels) for line in lines), default=0.0)
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.label, []).append(line)
    ways = list(dict.fromkeys(line.way for line in lines))
    for label, group in groups.items():
        place = ways.index(group[0].way)
        points = [(position(line), line) for line in group]
        shown = sorted(((x, line) for x, line in points if x is not None), key=lambda p: p[0])
        if not shown:
            continue
        height = [_accuracy(line, has_labels) for _, line in shown]
        if max(height) < _LEAST_SHARE * best:
            label = f"{label} ({', '.join(f'{value:.0f}' for value in height)}: below)"
            height = [math.nan] * len(height)
        trained = group[0].trained or group[0].way == DENSE_NAME
        spread = [_spread(line, has_labels) for _, line in shown]
        axes.errorbar(
            [x for x, _ in shown],
            height,
            yerr=spread if any(spread) else None,
            label=label,
            color=_INK if group[0].way == DENSE_NAME else _TONES[place % len(_TONES)],
            marker=_MARKERS[place % len(_MARKERS)],
            markerfacecolor=None if trained else "white",
            markersize=6,
            linewidth=1.0,
            linestyle="-" if trained else ":",
            capsize=2,
        )
    axes.set_xlabel(title, color=_INK)
    axes.set_ylabel("top-1, %" if has_labels else "agreement with dense, %", color=_INK)
    axes.grid(color=_FAINT, alpha=0.3, linewidth=0.5)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _accuracy(line: Line, has_labels: bool) -> float:
    return 100 * ((line.top1 or 0.0) if has_labels else line.agreement)


def _spread(line: Line, has_labels: bool) -> float:
    return 100 * ((line.top1_spread if has_labels else line.agreement_spread) or 0.0)
