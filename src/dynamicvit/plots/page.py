"""The paper's figure: a row for each image, a column for each stage, and a map of keep scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.data.classes import top_classes
from dynamicvit.errors import InputError
from dynamicvit.plots import style
from dynamicvit.plots.patches import after_stage, as_grid, as_rgb, score_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: One picture holds at most this many images: Agg draws nothing beyond 65,535 pixels.
MAX_IMAGES = 128

_CELL = 2.0  # inches; the side of a square cell, and the same area for any other
_GAP, _MARGIN, _TITLE, _CAPTION = 0.07, 0.12, 0.42, 0.28  # inches
_BAR_WIDTH, _BAR_LABELS = 0.09, 0.46  # inches


def draw(
    images: Tensor,
    output: PrunedOutput,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    dense_logits: Tensor | None = None,
    score_stage: int = 0,
) -> Figure:
    """Draw what a model kept of each image.

    The columns are the input, the image after each stage, and a map of one stage's keep scores
    (left out when the decisions were given: there are no scores then). Dropped patches are faded
    out; merged ones are a paler copy of the kept patch that they are part of. The map shows the
    order of the scores and no numbers: unless a model was trained with ``independent`` decisions,
    their level means nothing.

    Args:
        images: ``(B, C, H, W)`` in [0, 1], with one or three channels (see
            :func:`~dynamicvit.plots.patches.denormalize`).
        output: what :meth:`DynamicViT.forward_pruned` returned for them.
        names: name of each class; with it the predicted class stands under each row.
        labels: index of each image's true class, to mark predictions as right or wrong.
        dense_logits: ``(B, classes)`` of the dense model, to stand beside the pruned prediction.
        score_stage: whose scores to map, from 0; later ones are blank where patches were dropped.

    Returns:
        A figure; write it with :func:`dynamicvit.plots.style.save`.

    Raises:
        InputError: if the arguments don't belong to the same images, or there are more than
            ``MAX_IMAGES`` of them.
    """
    _check(images, output, labels, dense_logits, score_stage)
    images = torch.stack([as_rgb(image.detach().float().cpu()) for image in images])
    has_scores = bool(output.keep_scores)
    page = _Page(
        rows=len(images),
        columns=1 + len(output.kept) + has_scores,
        aspect=images.shape[2] / images.shape[3],
        has_caption=names is not None,
        has_bar=has_scores,
    )
    for column, title in enumerate(_titles(output, score_stage)):
        page.title(column, *title)
    for row, image in enumerate(images):
        _show(page.cell(row, 0), image)
        for stage, all_kept in enumerate(output.kept):
            kept = all_kept[row].cpu()
            groups = output.groups[stage][row].cpu() if output.groups else None
            axes = page.cell(row, 1 + stage)
            _show(axes, after_stage(image, kept, groups, output.grid))
            _outline(axes, as_grid(kept, output.grid), images.shape[2], images.shape[3])
        if has_scores:
            scores = score_map(output.keep_scores[score_stage][row].detach().cpu(), output.grid)
            _show_scores(page.cell(row, page.columns - 1), page.bar(row), scores)
        if names is not None:
            label = None if labels is None else int(labels[row])
            dense = None if dense_logits is None else dense_logits[row].detach()
            page.caption(row, _caption(output.logits[row].detach(), dense, names, label))
    return page.figure


class _Page:
    """Places cells, titles and captions, measured in inches, on a new figure."""

    def __init__(
        self, rows: int, columns: int, aspect: float, has_caption: bool, has_bar: bool
    ) -> None:
        self.columns = columns
        # Wide and tall images get the same area; the widest panorama still leaves a strip.
        aspect = min(max(aspect, 0.1), 10.0)
        self._cell = (_CELL / math.sqrt(aspect), _CELL * math.sqrt(aspect))
        self._row = self._cell[1] + (_CAPTION if has_caption else 0)
        right = _BAR_WIDTH + _BAR_LABELS if has_bar else 0
        self._width = 2 * _MARGIN + columns * (self._cell[0] + _GAP) - _GAP + right
        self._height = 2 * _MARGIN + _TITLE + rows * (self._row + _GAP) - _GAP
        self.figure = style.figure(self._width, self._height, layout=None)

    def cell(self, row: int, column: int) -> Axes:
        """Empty axes without ticks for one picture."""
        axes = self._axes(self._left(column), self._bottom(row), *self._cell)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(edgecolor="#d0d4da", linewidth=0.6)
        return axes

    def bar(self, row: int) -> Axes:
        """Axes for the color bar beside the last cell of a row."""
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

    def caption(self, row: int, text: str) -> None:
        """One line under a row, cut where the page ends."""
        # About 0.075 inches for each character of this size.
        room = int((self._width - 2 * _MARGIN) / 0.075)
        text = text if len(text) <= room else text[: room - 1].rstrip() + "…"
        self._text(_MARGIN, self._bottom(row) - 0.18, text, size=style.LABEL, color=style.INK)

    def _left(self, column: int) -> float:
        return _MARGIN + column * (self._cell[0] + _GAP)

    def _bottom(self, row: int) -> float:
        top = self._height - _MARGIN - _TITLE - row * (self._row + _GAP)
        return top - self._cell[1]

    def _axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        rectangle = (
            left / self._width,
            bottom / self._height,
            width / self._width,
            height / self._height,
        )
        return self.figure.add_axes(rectangle)

    def _text(self, x: float, y: float, text: str, **look: object) -> None:
        # A class name may hold a dollar sign: it is not mathematics.
        self.figure.text(x / self._width, y / self._height, text, parse_math=False, **look)


def _titles(output: PrunedOutput, score_stage: int) -> list[tuple[str, str]]:
    rows, columns = output.grid
    titles = [("input", f"{rows * columns} patches")]
    for stage, kept in enumerate(output.kept):
        rest = ", rest merged" if merges(output, stage) else ""
        titles.append((f"stage {stage + 1}", f"{kept.float().mean():.0%} kept{rest}"))
    if output.keep_scores:
        titles.append(("keep score", f"at stage {score_stage + 1}"))
    return titles


def merges(output: PrunedOutput, stage: int) -> bool:
    """Whether patches that a stage dropped became part of kept ones, as far as the output says."""
    return bool(output.groups) and bool((~output.kept[stage] & (output.groups[stage] >= 0)).any())


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), aspect="auto")


def _outline(axes: Axes, kept: Tensor, height: int, width: int) -> None:
    """A thin line between kept and dropped patches, which in a bright sky look alike."""
    from matplotlib.collections import LineCollection

    rows, columns = kept.shape
    across = kept[1:] != kept[:-1]
    down = kept[:, 1:] != kept[:, :-1]
    lines = [((c, r + 1), (c + 1, r + 1)) for r, c in across.nonzero().tolist()]
    lines += [((c + 1, r), (c + 1, r + 1)) for r, c in down.nonzero().tolist()]
    # imshow puts the center of the first pixel at 0.
    scaled = np.array(lines).reshape(-1, 2, 2) * (width / columns, height / rows) - 0.5
    axes.add_collection(LineCollection(scaled, colors="#8b929b", linewidths=0.45), autolim=False)


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
    bar.set(xticks=[], yticks=[0, 1], yticklabels=["low", "high"])
    bar.yaxis.tick_right()
    bar.tick_params(labelsize=7, length=0, pad=2, labelcolor=style.FAINT)
    for label, place in zip(bar.get_yticklabels(), ("bottom", "top"), strict=True):
        label.set_verticalalignment(place)
    for spine in bar.spines.values():
        spine.set_visible(False)


def _caption(logits: Tensor, dense: Tensor | None, names: Sequence[str], label: int | None) -> str:
    parts = [f"DynamicViT: {_guess(logits, names, label)}"]
    if dense is not None:
        parts.append(f"dense: {_guess(dense, names, label)}")
    if label is not None:
        parts.append(f"label: {_short(names[label])}")
    return "     ".join(parts)


def _guess(logits: Tensor, names: Sequence[str], label: int | None) -> str:
    [best] = top_classes(logits, names, k=1)
    mark = "" if label is None else " ✓" if best.index == label else " ✗"
    return f"{_short(best.name)} ({_percent(best.probability)}){mark}"


def _short(name: str) -> str:
    """The first of a class's synonyms."""
    return name.split(",")[0].strip()


def _percent(share: float) -> str:
    """A share with the digits that tell it from 0 and from 1."""
    digits = 0 if 0.0995 <= share <= 0.995 else 1 if share >= 0.00995 else 2
    return f"{share:.{digits}%}"


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
    if len(output.logits) != len(images):
        raise InputError(f"{len(images)} images, but the output of {len(output.logits)}")
    if labels is not None and len(labels) != len(images):
        raise InputError(f"{len(images)} images, but {len(labels)} labels")
    if dense_logits is not None and len(dense_logits) != len(images):
        raise InputError(f"{len(images)} images, but {len(dense_logits)} rows of dense logits")
    stages = len(output.keep_scores)
    if stages and not 0 <= score_stage < stages:
        raise InputError(f"score_stage {score_stage} does not exist: 0 to {stages - 1} do")
