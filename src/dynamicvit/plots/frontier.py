"""What a search for a schedule tried, and the frontier that it found, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dynamicvit.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]
"""Cost as a share of dense, and KL divergence from the dense answers."""


def plot_frontier(
    lines: Mapping[str, Sequence[Point]], tried: Sequence[Point], chosen: Point, unit: str
) -> Figure:
    """KL divergence over cost.

    Args:
        lines: for each name its points, on images that had no part in the search; the found one
            last.
        tried: schedules of the search, on the images searched with; may be none.
        chosen: what was chosen.
        unit: of the cost, "MACs" or "latency".
    """
    figure = style.figure(5.2, 3.8)
    axes = figure.subplots()
    if tried:  # none of a few may have been worth judging
        axes.scatter(*zip(*tried, strict=True), s=8, color=style.DENSE, label="tried", zorder=1)
    colors = (*style.SERIES[1 : len(lines)], style.PRUNED)
    for (name, points), color in zip(lines.items(), colors, strict=True):
        x, y = zip(*sorted(points), strict=True)
        axes.plot(x, y, "o-", markersize=4, linewidth=1.4, color=color, label=name, zorder=2)
    axes.plot(*chosen, "o", markersize=10, fillstyle="none", color=style.INK, label="chosen")
    axes.set_yscale("log")
    style.dress(axes, x=f"{unit}, share of dense", y="KL from the dense answers")
    axes.legend(frameon=False, fontsize=style.SMALL)
    return figure
