"""The plot style: colors, sizes, axes, and writing a figure.

matplotlib is imported where a figure is made. Figures have their own Agg canvas and leave pyplot
and its settings alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
SERIES = ("#1f5fa8", "#d9730d", "#2e8b57", "#7a4fb5", "#b5467c", "#8a6d3b", "#118ab2", "#5b6470")
SCORES = "viridis"  # color map of keep scores and stages
DPI = 150
TITLE, LABEL, SMALL = 10, 9, 8  # font sizes in points

_EDGE = 0.1  # inches between what is drawn and the edges

#: Where a format has room for who wrote a file.
_MARKS = {"png": {"Software": MARK}, "pdf": {"Creator": MARK}, "svg": {"Creator": MARK}}

#: Color and marker of each method, in every plot.
METHODS = {
    "dense": (INK, "o"),
    "dynamicvit": (PRUNED, "s"),
    "dynamicvit-removed": (PRUNED, "s"),
    "dynamicvit-merged": ("#12908e", "D"),
    "lookahead": ("#2f4b9c", "d"),
    "tome": ("#d9730d", "<"),
    "mctf": ("#b3261e", "h"),
    "diffrate": ("#1f8a70", "H"),
    "rlt": ("#c46210", "8"),
    "per-frame-merged": ("#0b7a75", "1"),
    "per-frame-removed": ("#7fb069", "4"),
    "fewer-frames": ("#6b705c", "2"),
    "fewer-pixels": ("#b08968", "3"),
    "tps": ("#9a5fd0", "*"),
    "evit": ("#7a4fb5", "X"),
    "class-attention": ("#c2478a", "P"),
    "downsample": ("#2e8b57", "p"),
    "static": ("#8a6d3b", "v"),
    "random": ("#8b929b", "^"),
    "narrow": ("#a3a847", ">"),
}
_OTHERS = ("#e4576f", "#3aa6d8", "#e0a100", "#5f7d2f", "#9c6ade", "#c98b6b", "#52606d")
_OTHER_MARKERS = "*hd8H"


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
    if layout == "constrained":
        page.get_layout_engine().set(w_pad=_EDGE, h_pad=_EDGE)
    need("matplotlib.backends.backend_agg", "plots").FigureCanvasAgg(page)
    return page


def method_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color and marker of each method, for ``Axes.plot``: of :data:`METHODS`, or of the rest."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name not in METHODS]
    looks = METHODS | {
        name: (_OTHERS[place % len(_OTHERS)], _OTHER_MARKERS[place % len(_OTHER_MARKERS)])
        for place, name in enumerate(others)
    }
    return {name: dict(zip(("color", "marker"), looks[name], strict=True)) for name in names}


def apart(places: Sequence[float], step: float) -> list[float]:
    """The places, in ascending order, moved as little as leaves each a step from the next."""
    blocks: list[tuple[float, int]] = []  # mean of what is wanted of its first label; labels
    for place in places:
        block = (place, 1)
        while blocks and blocks[-1][0] + step * blocks[-1][1] > block[0]:
            (before, count), (after, more) = blocks.pop(), block
            total = before * count + (after - step * count) * more
            block = (total / (count + more), count + more)
        blocks.append(block)
    return [first + step * number for first, count in blocks for number in range(count)]


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
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(which="both", labelsize=SMALL, color=FAINT, labelcolor=INK)


def word(axes: Axes, x: float, y: float, text: str) -> None:
    """A small word on a picture, legible on any color."""
    from matplotlib.patheffects import withStroke

    around = [withStroke(linewidth=1.5, foreground="white")]
    axes.text(
        x, y, text, size=6, color=INK, ha="center", va="center", path_effects=around,
        parse_math=False, clip_on=True,
    )  # fmt: skip


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
