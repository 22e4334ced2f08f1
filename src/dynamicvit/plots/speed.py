"""A benchmark as a picture: throughput of each runtime and precision, dense and pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynamicvit.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dynamicvit.evaluation.bench import BenchRow, Times

_BAR = 0.38


def plot_speed(rows: Sequence[BenchRow], title: str = "") -> Figure:
    """Horizontal bars of throughput, a panel for each batch size; quartiles as error bars.

    Relative to the dense network in eager fp32 if it was timed too, else in images per second.

    Args:
        rows: of one network, or of one pair of files.
        title: of the figure.
    """
    sizes = list(dict.fromkeys(row.batch_size for row in rows))
    settings = list(dict.fromkeys((row.runtime, row.precision) for row in rows))
    height = 1.2 + 0.55 * len(settings) + (0.3 if title else 0.0)
    figure = style.figure(1.5 + 2.9 * len(sizes), height)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    related = all(row.reference is not None for row in rows)
    unit = "throughput, times dense eager fp32" if related else "images per second"
    for axes, size in zip(panels, sizes, strict=True):
        for row in rows:
            if row.batch_size == size:
                _draw(axes, row, settings.index((row.runtime, row.precision)))
        style.dress(axes, f"batch {size}", x=unit, grid=False)
        axes.set_xlim(0, 1.75 * axes.dataLim.x1)  # room for the numbers, unclear ones too
        if related:
            axes.axvline(1.0, color=style.FAINT, linewidth=0.8, linestyle=":")
    first = panels[0]
    first.set_yticks(range(len(settings)), [" ".join(setting) for setting in settings])
    first.set_ylim(len(settings) - 0.4, -0.6)
    handles, labels = first.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="outside lower right",
        ncols=2,
        frameon=False,
        fontsize=style.LABEL,
    )
    if title:
        figure.suptitle(title, x=0.02, ha="left", color=style.INK, fontsize=style.TITLE)
    return figure


def _draw(axes: Axes, row: BenchRow, place: int) -> None:
    dense, pruned = row.names
    gain = ""
    if row.dense is not None:
        _bar(axes, row, row.dense, place - _BAR / 2, dense, style.DENSE)
        gain = f"  (×{row.speedup.median:.2f}{'' if row.speedup.conclusive else ', unclear'})"
    _bar(axes, row, row.pruned, place + _BAR / 2, pruned, style.PRUNED, gain)


def _bar(
    axes: Axes, row: BenchRow, times: Times, place: float, label: str, color: str, gain: str = ""
) -> None:
    speed = row.speed(times)
    text = f"{speed.median:.0f}" if speed.median >= 100 else f"{speed.median:#.3g}"
    known = speed.low < speed.high  # of one's own throughput, or of a median alone: no quartiles
    axes.barh(
        place,
        speed.median,
        height=_BAR,
        color=color,
        label=label,
        xerr=[[speed.median - speed.low], [speed.high - speed.median]] if known else None,
        error_kw={"ecolor": style.INK, "elinewidth": 0.8, "capsize": 2},
    )
    axes.annotate(
        text + gain,
        (speed.high, place),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=style.SMALL,
        color=style.INK,
    )
