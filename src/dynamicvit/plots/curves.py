"""A run's log as one picture: losses, kept patches, gradients and learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamicvit.plots import style
from dynamicvit.utils.words import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Points of a curve; longer runs are averaged over as many stretches of steps.
MAX_POINTS = 500

Step = Mapping[str, Any]


def curves(steps: Sequence[Step]) -> Figure:
    """The figure of a log (:func:`~dynamicvit.training.log.read_log`) of at least one step."""
    evaluated = [step for step in steps if step.get("held_out")]
    dropping = bool(steps[0]["kept"])
    panels = 3 + dropping + bool(evaluated)
    rows = (panels + 1) // 2
    figure = style.figure(13, 3.5 * rows)
    places = list(figure.subplots(rows, 2, sharex=True).flat)
    drawn, unused = places[:panels], places[panels:]
    for axes in unused:
        axes.set_visible(False)
    places = iter(drawn)
    x = _means([step["step"] for step in steps])
    losses = next(places)
    _losses(losses, x, steps)
    if dropping:
        _kept(next(places), x, steps)
    gradient, rates = next(places), next(places)
    _curve(gradient, x, _means([step["gradient_norm"] for step in steps]), color=style.INK)
    _dress(gradient, "gradient norm", scale="log")
    for name, color in zip(steps[0]["learning_rates"], cycle(style.SERIES), strict=False):
        values = _means([step["learning_rates"].get(name) for step in steps])
        rates.plot(x, values, color=color, label=name)
    _dress(rates, "learning rate", scale="log")
    bad = [step["step"] for step in steps if step["not_finite"]]
    for axes in (losses, gradient):
        for place, step in enumerate(bad):
            label = f"steps skipped: {len(bad)}" if not place else None
            axes.axvline(step, color=style.ALARM, linewidth=1.0, alpha=0.5, label=label)
    if evaluated:
        _held_out(next(places), evaluated)
    for axes in drawn[-2:]:  # below them is none
        style.dress(axes, x="step")
        axes.tick_params(labelbottom=True)
    for axes in drawn:
        if axes.get_legend_handles_labels()[0]:  # beside the axes, to cover no curve
            place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
            axes.legend(frameon=False, fontsize=style.SMALL, **place)
    return figure


def _losses(axes: Axes, x: np.ndarray, steps: Sequence[Step]) -> None:
    """Each part of the recipe, unweighted, and the weighted sum."""
    colors = cycle(style.SERIES)
    for name in steps[0]["losses"]:
        values = _means([step["losses"].get(name) for step in steps])
        if name == "total":
            _curve(axes, x, values, color=style.INK, linewidth=2.0, label="total (weighted)")
        elif np.nansum(values):
            _curve(axes, x, values, color=next(colors), label=name)
    _dress(axes, "losses", scale="log")


def _kept(axes: Axes, x: np.ndarray, steps: Sequence[Step]) -> None:
    """For each stage the fraction kept in training, by keep score, and at inference."""
    from matplotlib import colormaps

    stages = len(steps[0]["kept"])
    colors = colormaps[style.SCORES](np.linspace(0.1, 0.8, stages))
    for stage, color in enumerate(colors):
        for field, line, what in (
            ("kept", "-", f"stage {stage + 1}: in training"),
            ("kept_by_score", ":", "likelier kept than not"),
            ("kept_at_inference", "--", "at inference"),
        ):
            if not steps[0][field]:  # scores of which only the order means anything
                continue
            shares = [step[field][stage : stage + 1] for step in steps]
            values = _means([share[0] if share else None for share in shares])
            label = what if field == "kept" or stage == stages - 1 else None
            _curve(axes, x, values, linestyle=line, color=color, linewidth=1.2, label=label)
    _dress(axes, "fraction of patches kept")
    axes.set_ylim(0, 1.02)


def _held_out(axes: Axes, steps: Sequence[Step]) -> None:
    """Accuracy on what is held out, at each evaluation."""
    (name,) = steps[0]["held_out"]
    percent = [100 * step["held_out"][name] for step in steps]
    axes.plot([step["step"] for step in steps], percent, "o-", color=style.INK, markersize=4)
    _dress(axes, f"held-out {MEASURES[name]} (%)")


def _dress(axes: Axes, title: str, scale: str = "linear") -> None:
    style.dress(axes, title)
    if scale == "log":
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log", nonpositive="mask")
        for each in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            each(LogFormatter(minor_thresholds=(1.5, 0.5)))  # 30 and 40, where there is no 100


def _curve(axes: Axes, x: np.ndarray, values: np.ndarray, *, color: Any, **look: Any) -> None:
    """A smoothed line over the values as they are, which are pale."""
    axes.plot(x, values, color=color, linewidth=0.8, alpha=0.3)
    axes.plot(x, smoothed(values), color=color, **look)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means over a fifteenth of the curve around each point, as far as there are values."""
    half = len(values) // 30
    known = ~np.isnan(values)
    window = np.ones(2 * half + 1)
    sums = np.convolve(np.where(known, values, 0.0), window, mode="same")
    counts = np.convolve(known, window, mode="same")
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def _means(values: Sequence[float | None]) -> np.ndarray:
    """Means over at most :data:`MAX_POINTS` stretches, without missing values."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    parts = np.array_split(numbers, min(MAX_POINTS, len(numbers)))
    return np.array([np.nan if np.isnan(p).all() else np.nanmean(p) for p in parts])
