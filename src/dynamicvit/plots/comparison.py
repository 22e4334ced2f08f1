"""Plots of a comparison: accuracy over MACs and over measured throughput, and the ablations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamicvit.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dynamicvit.comparison import Line

#: Lines below this fraction of the best are only named, as they would compress the others.
_LEAST_SHARE = 0.6

#: Share of the largest value that the horizontal axis spans at least: equal costs look equal.
_LEAST_SPAN = 0.2

#: What the ablations leave something out of.
_WHOLE = "dynamicvit-removed"


def save_comparison(
    lines: Sequence[Line], folder: str | Path, ablations: Collection[str] = ()
) -> list[str]:
    """Write the plots of a comparison, each as PNG and PDF.

    Args:
        lines: of :func:`~dynamicvit.comparison.compare`.
        folder: of the plots.
        ablations: names of the methods that have a plot of their own.

    Returns:
        Their names, without ending.

    Raises:
        InputError: if matplotlib is not installed.
    """
    methods = [line for line in lines if line.method not in ablations]
    plots = {}
    if any(not line.is_dense for line in methods):
        plots["accuracy_over_gmacs"] = accuracy_over_macs(methods)
    for size in sorted({size for line in methods for size in line.timings}):
        plots[f"accuracy_over_throughput_batch_{size}"] = accuracy_over_throughput(methods, size)
    if len(methods) < len(lines):
        plots["ablations"] = accuracy_of_ablations(lines, ablations)
    for name, plot in plots.items():
        style.save(plot, Path(folder) / name)
    return list(plots)


def accuracy_over_macs(lines: Sequence[Line]) -> Figure:
    """Top-1 or mIoU, or agreement with dense without labels, over GMACs."""
    what = "video, all views" if any(line.views for line in lines) else "image"
    return _figure(lines, lambda line: line.gmacs, f"GMACs per {what}")


def accuracy_over_throughput(lines: Sequence[Line], batch_size: int) -> Figure:
    """The same over the measured ratio of throughputs at a batch size; dense is at 1."""

    def ratio(line: Line) -> float | None:
        timing = line.timings.get(batch_size)
        return timing and timing.speedup

    return _figure(lines, ratio, f"throughput, times dense, batch {batch_size}")


def accuracy_of_ablations(lines: Sequence[Line], ablations: Collection[str]) -> Figure:
    """A panel for each budget, a row for each ablation; vertical lines are what they are beside."""
    has_labels = _have_labels(lines)
    budgets = sorted({line.fraction for line in lines if line.method in ablations}, reverse=True)
    shown = {
        budget: sorted(
            (line for line in lines if line.method in ablations and line.fraction == budget),
            key=lambda line: _accuracy(line, has_labels),
        )
        for budget in budgets
    }
    rows = [len(group) for group in shown.values()]
    figure = style.figure(6.4, 1.0 * len(rows) + 0.32 * sum(rows))
    panels = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": rows})
    for axes, (budget, group) in zip(panels[:, 0], shown.items(), strict=True):
        values = [_accuracy(line, has_labels) for line in group]
        spread = [_spread(line, has_labels) for line in group]
        axes.errorbar(
            values, range(len(group)), xerr=spread, fmt="o", color=_color(_WHOLE), capsize=2
        )
        for place, (value, far) in enumerate(zip(values, spread, strict=True)):
            axes.annotate(
                f"{value:.1f}",
                (value + far, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=style.SMALL,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        for line in lines:
            if line.is_dense or (line.method == _WHOLE and line.fraction == budget):
                value, color = _accuracy(line, has_labels), _color(line.method)
                axes.axvline(value, color=color, linewidth=1, linestyle="--", zorder=1)
                axes.annotate(
                    f"{line.method} {value:.1f}",
                    (value, 1.02),
                    xycoords=axes.get_xaxis_transform(),
                    ha="left" if line.is_dense else "right",
                    color=color,
                    fontsize=style.SMALL,
                )
        axes.set_yticks(range(len(group)), [line.method for line in group])
        axes.set_ylim(-0.6, len(group) - 0.4)
        axes.margins(x=0.15)
        title = f"ablations at {budget:g} of dense MACs\n"
        style.dress(axes, title, x=_measure(lines))
    return figure


def _figure(lines: Sequence[Line], position: Callable[[Line], float | None], title: str) -> Figure:
    figure = style.figure(7.2, 4.4)
    axes = figure.add_subplot()
    has_labels = _have_labels(lines)
    best = max((_accuracy(line, has_labels) for line in lines), default=0.0)
    looks = style.method_styles(line.method for line in lines)
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.label, []).append(line)
    ends: dict[str, tuple[float, float]] = {}  # where a method's label points to
    low: dict[str, list[float]] = {}
    for group in groups.values():
        name = group[0].method
        points = [(position(line), line) for line in group if not line.is_dense]
        shown = sorted(((x, line) for x, line in points if x is not None), key=lambda p: p[0])
        heights = [_accuracy(line, has_labels) for _, line in shown]
        if not shown or max(heights) < _LEAST_SHARE * best:
            low.setdefault(name, []).extend(heights)
            continue
        trained = group[0].trained
        spread = [_spread(line, has_labels) for _, line in shown]
        axes.errorbar(
            [x for x, _ in shown],
            heights,
            yerr=spread if any(spread) else None,
            label=group[0].label,
            markerfacecolor=None if trained else "white",
            markersize=6,
            linewidth=1.4 if trained else 1.0,
            linestyle="-" if trained else ":",
            capsize=2,
            **looks[name],
        )
        if trained or name not in ends:
            ends[name] = (shown[-1][0], heights[-1])
    style.dress(axes, x=title, y=_measure(lines))
    axes.margins(x=0.06, y=0.08)
    left, right = axes.get_xlim()
    room = max(0.0, _LEAST_SPAN * right - (right - left)) / 2
    axes.set_xlim(left - room, right + room)
    for line in lines:
        if line.is_dense:
            height = _accuracy(line, has_labels)
            axes.axhline(height, color=looks[line.method]["color"], linewidth=1, linestyle="--")
            ends[line.method] = (axes.get_xlim()[1], height)
    hollow = {line.trained for line in lines if not line.is_dense}
    if len(hollow) > 1:
        axes.set_title("filled: fine-tuned; hollow: untrained", fontsize=style.SMALL,
                       color=style.FAINT, loc="left")  # fmt: skip
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    low = {name: heights for name, heights in low.items() if heights and name not in ends}
    _name(axes, ends, low, {name: look["color"] for name, look in looks.items()})
    return figure


def _name(
    axes: Axes,
    ends: dict[str, tuple[float, float]],
    low: dict[str, list[float]],
    colors: dict[str, Any],
) -> None:
    """Names beside the axes, each as near to the height of its line's end as others allow."""
    bottom, top = axes.get_ylim()
    step = 1.45 * style.SMALL / 72 * (top - bottom) / (0.8 * axes.figure.get_figheight())
    names = sorted(ends, key=lambda name: ends[name][1])
    wanted = [bottom] * len(low) + [ends[name][1] for name in names]
    for name, height in zip([*low, *names], style.apart(wanted, step), strict=True):
        values = ", ".join(f"{value:.1f}" for value in low.get(name, ()))
        axes.annotate(
            f"{name} ({values}: below)" if values else name,
            xy=ends.get(name, (axes.get_xlim()[1], height)),
            xytext=(1.04, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            color=colors[name],
            fontsize=style.SMALL,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colors[name], "linewidth": 0.6, "alpha": 0.6}
            | {"shrinkA": 1, "shrinkB": 4},
        )


def _color(method: str) -> Any:
    return style.method_styles([method])[method]["color"]


def _have_labels(lines: Sequence[Line]) -> bool:
    return all(line.score is not None for line in lines)


def _measure(lines: Sequence[Line]) -> str:
    score = lines[0].score if _have_labels(lines) else None
    return "agreement with dense, %" if score is None else f"{score[0]}, %"


def _accuracy(line: Line, has_labels: bool) -> float:
    return 100 * (line.score[1] if has_labels and line.score else line.agreement)


def _spread(line: Line, has_labels: bool) -> float:
    found = line.score[2] if has_labels and line.score else line.agreement_spread
    return 100 * (found or 0.0)
