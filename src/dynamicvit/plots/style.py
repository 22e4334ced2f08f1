"""The plot style: colors, sizes, axes, and writing a figure.

matplotlib is imported where a figure is made. Figures have their own Agg canvas and leave pyplot
and its settings alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamicvit.errors import InputError
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.optional import need
from dynamicvit.utils.outputs import MARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, ALARM = "#1b1f24", "#6b7280", "#c1121f"
DENSE, PRUNED = "#b8c4d6", "#1f5fa8"  # of the two paths
SCORES = "viridis"  # color map of keep scores and stages
DPI = 150
TITLE, LABEL, SMALL = 10, 9, 8  # font sizes in points

#: Where a format has room for who wrote a file.
_MARKS = {"png": {"Software": MARK}, "pdf": {"Creator": MARK}, "svg": {"Creator": MARK}}
_MARKERS = "osD^vP*X<>hd8pH"


def figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """An empty figure.

    Args:
        width: in inches.
        height: in inches.
        layout: matplotlib's layout engine; None if the caller places all axes.

    Raises:
        InputError: if matplotlib is not installed.
    """
    page = need("matplotlib.figure", "plots").Figure(
        figsize=(width, height), dpi=DPI, facecolor="white", layout=layout
    )
    need("matplotlib.backends.backend_agg", "plots").FigureCanvasAgg(page)
    return page


def method_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color and marker of each method, for ``Axes.plot``; "dense" is drawn in ink."""
    tones = need("matplotlib", "plots").colormaps["tab20"]
    order = (*range(0, 20, 2), *range(1, 20, 2))  # full tones, then pale ones
    return {
        name: {
            "color": INK if name == "dense" else tones(order[place % len(order)]),
            "marker": _MARKERS[place % len(_MARKERS)],
        }
        for place, name in enumerate(dict.fromkeys(names))
    }


def dress(
    axes: Axes,
    title: str | None = None,
    *,
    x: str | None = None,
    y: str | None = None,
    grid: bool = True,
) -> None:
    """Label axes, with a faint grid and no frame at the right and top."""
    if title is not None:
        axes.set_title(title, loc="left", fontsize=TITLE, color=INK)
    if x is not None:
        axes.set_xlabel(x, fontsize=LABEL, color=INK)
    if y is not None:
        axes.set_ylabel(y, fontsize=LABEL, color=INK)
    if grid:
        axes.grid(color=FAINT, alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write a figure in the format of the path's ending; without one, as PNG and PDF.

    Folders are made as needed. An existing file is replaced, whole or not at all.

    Returns:
        The files written.

    Raises:
        InputError: for an unknown format, or a path that can't be written.
    """
    path = Path(path)
    paths = [path] if path.suffix else [path.with_suffix(".png"), path.with_suffix(".pdf")]
    for each in paths:
        kind = each.suffix.lstrip(".").lower()
        if kind not in figure.canvas.get_supported_filetypes():
            raise InputError(f"{each} must end in .png, .pdf or .svg, got {each.suffix!r}")
        try:
            each.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(each) as draft:
                figure.savefig(draft, format=kind, dpi=DPI, metadata=_MARKS.get(kind))
        except OSError as error:
            raise InputError(f"{each}: can't be written ({error.strerror or error})") from error
    return tuple(paths)
