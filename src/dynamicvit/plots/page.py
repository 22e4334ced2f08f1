"""The paper's figure: a row for each image, a column for each stage, and a map of keep scores."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.data.class_names import short_name, top_classes
from dynamicvit.errors import InputError
from dynamicvit.plots import style
from dynamicvit.plots.maps import Overlay
from dynamicvit.plots.patches import after_stage, as_grid, as_rgb, is_dark, score_map
from dynamicvit.utils.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Images of one figure, as Agg is limited to 65,535 pixels.
MAX_IMAGES = 128

#: Stages that are drawn, of a method that has more.
MAX_STAGES = 6

_CELL = 2.0  # inches; the side of a square cell, whose area all cells have
_LEAST_PITCH = 1.55  # inches from column to column: room for their titles
_GAP, _MARGIN, _TITLE, _LINE, _SPACE = 0.07, 0.12, 0.42, 0.19, 0.1  # inches
_LONGEST = 50  # characters of a class's name
_BAR_WIDTH, _BAR_LABELS = 0.09, 0.5  # inches


def draw(
    images: Tensor,
    output: PrunedOutput,
    *,
    method: str = "pruned",
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    dense_logits: Tensor | None = None,
    score_stage: int = 0,
    show_merged: bool = False,
    overlays: Sequence[Overlay] = (),
    dark: bool | None = None,
) -> Figure:
    """Draw the patches that a model keeps of each image.

    The columns are the input, the image after each stage (of more than :data:`MAX_STAGES` as many,
    the first and the last among them), and a map of one stage's keep scores, if the output has any.
    Kept patches are outlined and look as they are; all others are dimmed. The map shows only the
    order of the scores, as their level means nothing unless a model was trained with
    ``independent`` decisions.

    Args:
        images: ``(B, C, H, W)`` in [0, 1], with 1, 3 or 4 channels.
        output: of :meth:`DynamicViT.forward_pruned` for them.
        method: whose predictions these are, in the captions.
        names: of the classes, to print predictions.
        labels: class index of each image, to mark predictions as right or wrong.
        dense_logits: ``(B, classes)`` of the dense model, to print its predictions too.
        score_stage: stage of the map, from 0; patches dropped before it are blank.
        show_merged: draw merged patches as paler copies of the kept patch that they are part of.
        overlays: further columns, of maps (:func:`dynamicvit.plots.maps.overlay`).
        dark: whether the images count as dark; by default each is looked at.

    Returns:
        A figure; write it with :func:`dynamicvit.plots.style.save`.

    Raises:
        InputError: for arguments of different lengths, or more than ``MAX_IMAGES`` images.
    """
    _check(images, output, labels, dense_logits, score_stage)
    images = torch.stack([as_rgb(image.detach().float().cpu()) for image in images])
    has_scores = bool(output.keep_scores)
    stages = shown_stages(len(output.kept))
    page = _Page(
        captions=_captions(output, method, names, labels, dense_logits),
        columns=1 + len(stages) + len(overlays) + has_scores,
        aspect=images.shape[2] / images.shape[3],
        has_bar=has_scores,
    )
    for column, title in enumerate(_titles(output, stages, score_stage, overlays)):
        page.title(column, *title)
    for row, image in enumerate(images):
        _show(page.cell(row, 0), image)
        for column, stage in enumerate(stages, start=1):
            kept = output.kept[stage][row].cpu()
            shows_groups = show_merged and output.groups
            groups = output.groups[stage][row].cpu() if shows_groups else None
            axes = page.cell(row, column)
            _show(axes, after_stage(image, kept, groups, output.grid, dark))
            night = is_dark(image) if dark is None else dark
            line = style.INK if night else "white"
            _outline(axes, as_grid(kept, output.grid), images.shape[2], images.shape[3], line)
        for column, each in enumerate(overlays, start=1 + len(stages)):
            axes = page.cell(row, column)
            _show(axes, each.pictures[row])
            for x, y, word in each.words[row]:
                style.word(axes, x, y, word)
        if has_scores:
            scores = score_map(output.keep_scores[score_stage][row].detach().cpu(), output.grid)
            _show_scores(page.cell(row, page.columns - 1), page.bar(row), scores)
    return page.figure


class _Page:
    """A figure with cells, titles and captions placed in inches.

    Args:
        captions: for each row its parts, in as many lines as they need.
        columns: of cells.
        aspect: height of a cell over its width.
        has_bar: leave room for a color bar.
    """

    def __init__(
        self, captions: Sequence[Sequence[str]], columns: int, aspect: float, has_bar: bool
    ) -> None:
        self.columns = columns
        # All shapes have the same area, up to a ratio of ten.
        aspect = min(max(aspect, 0.1), 10.0)
        self._cell = (_CELL / math.sqrt(aspect), _CELL * math.sqrt(aspect))
        self._pitch = max(self._cell[0] + _GAP, _LEAST_PITCH if columns > 1 else 0)
        right = _BAR_WIDTH + _BAR_LABELS if has_bar else 0
        self._width = 2 * _MARGIN + columns * self._pitch - _GAP + right
        below = [_in_lines(parts, self._width - 2 * _MARGIN) for parts in captions]
        self._row = self._cell[1] + _LINE * max(map(len, below)) + (_SPACE if any(below) else 0)
        self._height = 2 * _MARGIN + _TITLE + len(captions) * (self._row + _GAP) - _GAP
        self.figure = style.figure(self._width, self._height, layout=None)
        look = {"size": style.LABEL, "color": style.INK, "va": "top"}
        for row, lines in enumerate(below):
            for place, line in enumerate(lines):
                self._text(_MARGIN, self._bottom(row) - 0.05 - place * _LINE, line, **look)

    def cell(self, row: int, column: int) -> Axes:
        """Axes without ticks for a picture."""
        axes = self._axes(self._left(column), self._bottom(row), *self._cell)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(edgecolor="#d0d4da", linewidth=0.6)
        return axes

    def bar(self, row: int) -> Axes:
        """Axes for the color bar beside a row's last cell."""
        left = self._left(self.columns - 1) + self._cell[0] + 0.06
        return self._axes(left, self._bottom(row), _BAR_WIDTH, self._cell[1])

    def title(self, column: int, first: str, second: str) -> None:
        """Two lines above a column."""
        x = self._left(column) + self._cell[0] / 2
        y = self._height - _MARGIN - _TITLE
        self._text(
            x, y + 0.24, first, size=style.TITLE, color=style.INK, weight="bold", ha="center"
        )
        self._text(x, y + 0.08, second, size=8.5, color=style.FAINT, ha="center")

    def _left(self, column: int) -> float:
        return _MARGIN + column * self._pitch + (self._pitch - _GAP - self._cell[0]) / 2

    def _bottom(self, row: int) -> float:
        return self._height - _MARGIN - _TITLE - row * (self._row + _GAP) - self._cell[1]

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        w, h = self._width, self._height
        return self.figure.add_axes((left / w, bottom / h, width / w, height / h))

    def _text(self, x: float, y: float, text: str, **look: object) -> None:
        # A dollar sign in a class name is no mathematics.
        self.figure.text(x / self._width, y / self._height, text, parse_math=False, **look)


def shown_stages(count: int) -> list[int]:
    """The stages that are drawn of so many, evenly spaced, the first and the last among them."""
    number = min(count, MAX_STAGES)
    return [round(place * (count - 1) / max(1, number - 1)) for place in range(number)]


def _titles(
    output: PrunedOutput, stages: Sequence[int], score_stage: int, overlays: Sequence[Overlay]
) -> list[tuple[str, str]]:
    rows, columns = output.grid
    titles = [("input", f"{rows * columns} patches")]
    for stage in stages:
        kept = output.kept[stage]
        rest = ", rest merged" if merges(output, stage) else ""
        titles.append((f"stage {stage + 1}", f"{percent(kept.float().mean(), 0)} kept{rest}"))
    titles += [each.title for each in overlays]
    if output.keep_scores:
        blank = ", white: dropped" if score_stage else ""  # by the stages before
        titles.append(("keep scores", f"order at stage {score_stage + 1}{blank}"))
    return titles


def merges(output: PrunedOutput, stage: int) -> bool:
    """Whether the output has patches that a stage merged into kept ones."""
    return bool(output.groups) and bool((~output.kept[stage] & (output.groups[stage] >= 0)).any())


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), aspect="auto")


def _outline(axes: Axes, kept: Tensor, height: int, width: int, color: str) -> None:
    """A thin line between kept and dropped patches."""
    from matplotlib.collections import LineCollection

    rows, columns = kept.shape
    across = kept[1:] != kept[:-1]
    down = kept[:, 1:] != kept[:, :-1]
    lines = [((c, r + 1), (c + 1, r + 1)) for r, c in across.nonzero().tolist()]
    lines += [((c + 1, r), (c + 1, r + 1)) for r, c in down.nonzero().tolist()]
    # imshow puts the center of the first pixel at 0.
    scaled = np.array(lines).reshape(-1, 2, 2) * (width / columns, height / rows) - 0.5
    axes.add_collection(LineCollection(scaled, colors=color, linewidths=0.6), autolim=False)


def _show_scores(axes: Axes, bar: Axes, scores: Tensor) -> None:
    from matplotlib import colormaps

    colors = colormaps[style.SCORES].with_extremes(bad="white")
    axes.imshow(
        np.ma.masked_invalid(scores.numpy()),
        cmap=colors,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )
    gradient = np.linspace(1, 0, 256)[:, None]
    bar.imshow(gradient, cmap=colors, aspect="auto", extent=(0, 1, 0, 1))
    bar.set(xticks=[], yticks=[0, 1], yticklabels=["dropped\nfirst", "kept\nfirst"])
    bar.yaxis.tick_right()
    bar.tick_params(labelsize=7, length=0, pad=2, labelcolor=style.FAINT)
    for label, place in zip(bar.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(place)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _captions(
    output: PrunedOutput,
    method: str,
    names: Sequence[str] | None,
    labels: Sequence[int] | None,
    dense: Tensor | None,
) -> list[list[str]]:
    """For each image the parts of its caption; none without names."""
    if names is None:
        return [[] for _ in output.logits]
    captions = []
    for row, logits in enumerate(output.logits.detach()):
        label = None if labels is None else int(labels[row])
        parts = [f"{method}: {_guess(logits, names, label)}"]
        if dense is not None:
            parts.append(f"dense: {_guess(dense[row].detach(), names, label)}")
        if label is not None:
            parts.append(f"label: {_short(names[label])}")
        captions.append(parts)
    return captions


def _in_lines(parts: Sequence[str], width: float) -> list[str]:
    """Parts beside each other as far as they fit, in lines of a width in inches."""
    lines: list[str] = []
    for part in parts:
        beside = f"{lines[-1]}     {part}" if lines else part
        if _inches(beside) <= width:
            lines[-1:] = [beside]
        else:
            room = int(0.9 * width / _inches(part) * len(part))
            lines += textwrap.wrap(part, min(room, len(part)))
    return lines


def _inches(text: str) -> float:
    """Width of a caption."""
    from matplotlib.textpath import TextPath

    return TextPath((0, 0), text.replace("$", "S"), size=style.LABEL).get_extents().width / 72


def _guess(logits: Tensor, names: Sequence[str], label: int | None) -> str:
    [best] = top_classes(logits, names, k=1)
    mark = "" if label is None else " ✓" if best.index == label else " ✗"
    return f"{_short(best.name)} ({_percent(best.probability)}){mark}"


def _short(name: str) -> str:
    """The first synonym of a class, if need be its beginning."""
    first = short_name(name)
    return first if len(first) <= _LONGEST else f"{first[: _LONGEST - 1]}…"


def _percent(share: float) -> str:
    """A fraction with enough digits to differ from 0 and 1."""
    digits = 0 if 0.0995 <= share <= 0.995 else 1 if share >= 0.00995 else 2
    return percent(share, digits)


def _check(
    images: Tensor,
    output: PrunedOutput,
    labels: Sequence[int] | None,
    dense_logits: Tensor | None,
    score_stage: int,
) -> None:
    if images.ndim != 4 or not 0 < len(images) <= MAX_IMAGES:
        raise InputError(
            f"images must be (batch, channels, height, width) with 1 to {MAX_IMAGES} images, "
            f"got {tuple(images.shape)}"
        )
    for given, what in (
        (output.logits, "rows of logits"),
        (labels, "labels"),
        (dense_logits, "rows of dense logits"),
    ):
        if given is not None and len(given) != len(images):
            raise InputError(f"{len(images)} images, but {len(given)} {what}")
    stages = len(output.keep_scores)
    if stages and not 0 <= score_stage < stages:
        raise InputError(f"score_stage must be in 0 to {stages - 1}, got {score_stage}")
