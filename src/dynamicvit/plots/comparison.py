"""Plots of a comparison: accuracy over MACs, and over measured throughput."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamicvit.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dynamicvit.comparison import Line

#: Lines below this fraction of the best are only named, as they would compress the others.
_LEAST_SHARE = 0.6


def save_comparison(lines: Sequence[Line], folder: str | Path) -> list[str]:
    """Write the plots of a comparison, each as PNG and PDF.

    Args:
        lines: of :func:`~dynamicvit.comparison.compare`.
        folder: of the plots.

    Returns:
        Their names, without ending.

    Raises:
        InputError: if matplotlib is not installed.
    """
    plots = {"accuracy_over_gmacs": accuracy_over_macs(lines)}
    for size in sorted({size for line in lines for size in line.timings}):
        plots[f"accuracy_over_throughput_batch_{size}"] = accuracy_over_throughput(lines, size)
    for name, plot in plots.items():
        style.save(plot, Path(folder) / name)
    return list(plots)


def accuracy_over_macs(lines: Sequence[Line]) -> Figure:
    """Top-1, or agreement with dense without labels, over GMACs."""
    return _figure(lines, lambda line: line.gmacs, "GMACs per image")


def accuracy_over_throughput(lines: Sequence[Line], batch_size: int) -> Figure:
    """The same over the measured ratio of throughputs at a batch size; dense is at 1."""

    def ratio(line: Line) -> float | None:
        timing = line.timings.get(batch_size)
        return 1.0 if line.is_dense else timing and timing.speedup

    return _figure(lines, ratio, f"throughput, times dense, batch {batch_size}")


def _figure(lines: Sequence[Line], position: Callable[[Line], float | None], title: str) -> Figure:
    figure = style.figure(6.4, 4.2)
    axes = figure.add_subplot()
    has_labels = all(line.top1 is not None for line in lines)
    best = max((_accuracy(line, has_labels) for line in lines), default=0.0)
    styles = style.method_styles(line.method for line in lines)
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.label, []).append(line)
    for label, group in groups.items():
        points = [(position(line), line) for line in group]
        shown = sorted(((x, line) for x, line in points if x is not None), key=lambda p: p[0])
        if not shown:
            continue
        height = [_accuracy(line, has_labels) for _, line in shown]
        if max(height) < _LEAST_SHARE * best:
            label = f"{label} ({', '.join(f'{value:.0f}' for value in height)}: below)"
            height = [math.nan] * len(height)
        spread = [_spread(line, has_labels) for _, line in shown]
        whole = group[0].trained or group[0].is_dense
        axes.errorbar(
            [x for x, _ in shown],
            height,
            yerr=spread if any(spread) else None,
            label=label,
            markerfacecolor=None if whole else "white",
            markersize=6,
            linewidth=1.0,
            linestyle="-" if whole else ":",
            capsize=2,
            **styles[group[0].method],
        )
    style.dress(axes, x=title, y="top-1, %" if has_labels else "agreement with dense, %")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _accuracy(line: Line, has_labels: bool) -> float:
    return 100 * ((line.top1 or 0.0) if has_labels else line.agreement)


def _spread(line: Line, has_labels: bool) -> float:
    return 100 * ((line.top1_spread if has_labels else line.agreement_spread) or 0.0)
