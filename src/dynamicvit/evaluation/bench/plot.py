"""The table as a picture: how fast each runtime and precision is, dense and pruned."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dynamicvit.evaluation.bench.rows import BenchRow
from dynamicvit.evaluation.bench.times import Spread, Times

_INK, _FAINT = "#1b1f24", "#6b7280"
_DENSE, _PRUNED = "#b8c4d6", "#1f5fa8"
_BAR = 0.38


def plot_rows(rows: Sequence[BenchRow], title: str = "") -> Figure:
    """Horizontal bars, a panel to each batch size; quartiles as error bars.

    The bars are throughputs: times that of the dense network in eager fp32 where it was timed too,
    else images per second.

    Args:
        rows: of one network, or of one pair of files.
        title: over all.
    """
    sizes = list(dict.fromkeys(row.batch_size for row in rows))
    settings = list(dict.fromkeys((row.runtime, row.precision) for row in rows))
    height = 1.2 + 0.55 * len(settings) + (0.3 if title else 0.0)
    figure = Figure(figsize=(1.6 + 3.4 * len(sizes), height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        for row in rows:
            if row.batch_size == size:
                _draw(axes, row, settings.index((row.runtime, row.precision)))
        axes.set_title(f"batch {size}", color=_INK, fontsize=10)
        related = all(row.reference is not None for row in rows)
        unit = "throughput, times dense eager fp32" if related else "images per second"
        axes.set_xlabel(unit, color=_INK, fontsize=9)
        axes.set_xlim(0, 1.5 * axes.dataLim.x1)  # the numbers stand behind the bars
        if related:
            axes.axvline(1.0, color=_FAINT, linewidth=0.8, linestyle=":")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    first = panels[0]
    first.set_yticks(range(len(settings)), [" ".join(setting) for setting in settings])
    first.set_ylim(len(settings) - 0.4, -0.6)
    handles, labels = first.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(
        shown.values(), shown.keys(), loc="outside lower right", ncols=2, frameon=False, fontsize=9
    )
    if title:
        figure.suptitle(title, color=_INK, fontsize=10)
    return figure


def _draw(axes: Axes, row: BenchRow, place: int) -> None:
    if row.dense is not None:
        _bar(axes, row, row.dense, place - _BAR / 2, "dense", _DENSE)
    _bar(axes, row, row.pruned, place + _BAR / 2, "pruned", _PRUNED)


def _bar(axes: Axes, row: BenchRow, times: Times, place: float, label: str, color: str) -> None:
    speed = _speed(row, times)
    text = f"{speed.median:.0f}" if speed.median >= 100 else f"{speed.median:.3g}"
    if label == "pruned" and row.dense is not None:
        text += f"  (×{row.speedup.median:.2f}{'' if row.conclusive else ', unclear'})"
    axes.barh(
        place,
        speed.median,
        height=_BAR,
        color=color,
        label=label,
        xerr=[[speed.median - speed.low], [speed.high - speed.median]],
        error_kw={"ecolor": _INK, "elinewidth": 0.8, "capsize": 2},
    )
    axes.annotate(
        text,
        (speed.high, place),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=_INK,
    )


def _speed(row: BenchRow, times: Times) -> Spread:
    """Throughput, as a multiple of the reference's where there is one."""
    if row.reference is not None:
        return row.reference.over(times)
    return Spread.of([row.batch_size / seconds for seconds in times.seconds])
