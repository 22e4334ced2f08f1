"""The paper's picture for anyone's images: dropped patches fade out, stage by stage.

Patches that merge show the kept patch that they are part of, paler than it.

In one step, from a model and normalized images::

    save_figure(visualize(model, images), "kept.png")
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.errors import InputError

#: One picture holds at most this many images: Agg draws nothing beyond 65,535 pixels.
MAX_IMAGES = 128

_DPI = 150
_CELL = 2.0  # inches; the side of a square cell, and the same area for any other
_GAP, _MARGIN, _TITLE, _CAPTION = 0.07, 0.12, 0.42, 0.28  # inches
_BAR_WIDTH, _BAR_LABELS = 0.09, 0.46  # inches
_INK, _FAINT = "#1b1f24", "#6b7280"
_SCORE_COLORS = "viridis"
_MERGED_FADE = 0.5  # a merged patch is told from a kept one, and what it is part of still seen


# ---------------------------------------------------------------- images and maps


def fade(
    image: Tensor,
    survived: Tensor,
    grid: tuple[int, int],
    strength: float = 0.82,
    towards: float = 1.0,
) -> Tensor:
    """The image with its dropped patches faded out.

    Args:
        image: ``(3, H, W)`` in [0, 1]; one channel is repeated for the three.
        survived: ``(N,)`` bool, which patches are kept, in image order.
        grid: rows and columns of patches; N is their product.
        strength: how far a dropped patch goes: 0 leaves it, 1 leaves nothing of it.
        towards: the brightness it goes to, 1 for white.

    Returns:
        ``(3, H, W)``; kept patches as they were.

    Raises:
        InputError: if the shapes don't fit each other.
    """
    image = _as_rgb(image)
    kept = _as_grid(survived, grid).to(image.dtype)
    kept = F.interpolate(kept[None, None], size=image.shape[1:], mode="nearest")[0]
    return image.lerp(torch.full_like(image, towards), strength * (1 - kept))


def as_merged(image: Tensor, survived: Tensor, groups: Tensor, grid: tuple[int, int]) -> Tensor:
    """The image in which each patch that became part of a kept one looks like that one.

    Args:
        image: ``(3, H, W)``.
        survived: ``(N,)`` bool, which patches are kept, in image order.
        groups: ``(N,)``, which of the kept ones each patch is part of, -1 for none.
        grid: rows and columns of patches; N is their product.

    Returns:
        ``(3, H, W)``; patches that are part of none, and kept ones, as they were.

    Raises:
        InputError: if N is not rows times columns.
    """
    rows, columns = grid
    kept = _as_grid(survived, grid).flatten().nonzero().flatten()
    own = torch.arange(rows * columns)
    source = own if not len(kept) else torch.where(groups < 0, own, kept[groups.clamp(min=0)])
    source = torch.where(survived, own, source).reshape(rows, columns)
    height, width = image.shape[1:]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    row, column = y * rows // height, x * columns // width
    source = source[row, column]
    # As far from the corner of the one patch as from that of the other.
    y = y + ((source // columns - row) * height / rows).round().long()
    x = x + ((source % columns - column) * width / columns).round().long()
    return image[:, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def score_map(keep_scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where each patch stands among the others by its keep score, laid out as the image.

    Scores decide by their order alone. Their values span orders of magnitude, in which a few
    patches would hide how the others differ.

    Args:
        keep_scores: ``(N,)`` log-probabilities of keeping; ``-inf`` for patches already gone.
        grid: rows and columns of patches; N is their product.

    Returns:
        ``(rows, columns)``, from 0 for the lowest score to 1 for the highest, equal scores midway
        between their places; NaN for patches already gone, which matplotlib leaves blank.

    Raises:
        InputError: if N is not rows times columns.
    """
    scores = _as_grid(keep_scores, grid).float().flatten()
    known = scores[~scores.isneginf()]
    below = (known[:, None] > known).sum(dim=1) + 0.5 * ((known[:, None] == known).sum(dim=1) - 1)
    places = torch.full_like(scores, float("nan"))
    places[~scores.isneginf()] = below / max(1, len(known) - 1)
    return places.reshape(grid)


def denormalise(images: Tensor, model: PrunedClassifier) -> Tensor:
    """Undo the normalization that the model's weights expect.

    Args:
        images: ``(..., C, H, W)`` as the model takes them.
        model: its ``pretrained_cfg`` gives mean and standard deviation, timm's defaults if it has
            none.

    Returns:
        The images in [0, 1].
    """
    config = resolve_model_data_config(model)
    mean, std = (images.new_tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (images * std + mean).clamp(0, 1)


# ---------------------------------------------------------------- names of classes


def class_names(model: PrunedClassifier) -> list[str]:
    """Names of the model's classes, or ``"class 0"``, ``"class 1"``, ... if nobody knows them."""
    names = known_class_names(model)
    return [f"class {index}" for index in range(model.num_classes)] if names is None else names


def known_class_names(model: PrunedClassifier) -> list[str] | None:
    """Names of the model's classes, or ``None``.

    From ``label_descriptions`` or ``label_names`` of its ``pretrained_cfg``; else from the number
    of classes where that tells which ImageNet it is (1,000 and the ImageNet-21k sets).
    """
    count = model.num_classes
    config = model.pretrained_cfg or {}
    names = config.get("label_names")
    descriptions = config.get("label_descriptions")
    if isinstance(descriptions, dict) and names:
        descriptions = [descriptions.get(name, name) for name in names]
    for known in (descriptions, names):
        if isinstance(known, Sequence) and not isinstance(known, str) and len(known) == count:
            return [str(name) for name in known]
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is not None:
        return list(ImageNetInfo(subset).label_descriptions())
    return None


class Prediction(NamedTuple):
    """A class and its probability.

    Attributes:
        index: which class.
        name: its name.
        probability: in [0, 1].
    """

    index: int
    name: str
    probability: float


def top_classes(logits: Tensor, names: Sequence[str], k: int = 5) -> list[Prediction]:
    """The k most probable classes, best first; fewer if there are not that many.

    Args:
        logits: ``(classes,)`` of one image.
        names: name of each class.
        k: how many.

    Raises:
        InputError: if there is not one name for each class.
    """
    if logits.shape != (len(names),):
        raise InputError(f"{len(names)} class names, but logits of shape {tuple(logits.shape)}")
    best = logits.float().softmax(dim=-1).topk(min(k, len(names)))
    return [
        Prediction(index, names[index], probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


# ---------------------------------------------------------------- the figure


def figure(
    images: Tensor,
    output: PrunedOutput,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    dense_logits: Tensor | None = None,
    score_stage: int = 0,
) -> Figure:
    """The paper's figure: a row for each image, a column for each stage.

    The columns are the input, the image after each stage, and a map of one stage's keep scores
    (left out when the decisions were given, as there are no scores then). In the image, dropped
    patches are faded out; where they merge, each is a paler copy of the kept patch that it is part
    of. The map has the order of the scores, which alone decides, and no numbers: unless a model was
    trained with ``independent`` decisions, nothing holds their level.

    Args:
        images: ``(B, C, H, W)`` in [0, 1], with one or three channels (see :func:`denormalise`).
        output: what :meth:`DynamicViT.forward_pruned` gave for them.
        names: name of each class; with it the predicted class stands under each row.
        labels: the right class of each image, to tell right predictions from wrong ones.
        dense_logits: ``(B, classes)`` of the dense model, to stand beside the pruned prediction.
        score_stage: whose scores to map; later ones leave blank what earlier stages dropped.

    Returns:
        A figure on an Agg canvas of its own; pyplot does not know it. See :func:`save_figure`.

    Raises:
        InputError: if the arguments don't belong to the same images, or there are more than
            ``MAX_IMAGES`` of them.
    """
    _check(images, output, labels, dense_logits, score_stage)
    images = torch.stack([_as_rgb(image.detach().float().cpu()) for image in images])
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
        for stage, survived in enumerate(output.kept):
            kept = survived[row].cpu()
            groups = output.groups[stage][row].cpu() if output.groups else None
            axes = page.cell(row, 1 + stage)
            _show(axes, _after_stage(image, kept, groups, output.grid))
            _outline(axes, _as_grid(kept, output.grid), images.shape[2], images.shape[3])
        if has_scores:
            scores = score_map(output.keep_scores[score_stage][row].detach().cpu(), output.grid)
            _show_scores(page.cell(row, page.columns - 1), page.bar(row), scores)
        if names is not None:
            label = None if labels is None else int(labels[row])
            dense = None if dense_logits is None else dense_logits[row].detach()
            page.caption(row, _caption(output.logits[row].detach(), dense, names, label))
    return page.figure


@torch.no_grad()
def visualize(
    model: DynamicViT,
    images: Tensor,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    score_stage: int = 0,
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Run the model, pruned and dense, and draw :func:`figure`.

    Args:
        model: used in the mode that it is in; call ``model.eval()`` first.
        images: ``(B, C, H, W)`` normalized, on the model's device.
        names: name of each class; the model's own if not given.
        labels: the right class of each image.
        score_stage: whose keep scores to map.
        mean_std: how the images were normalized, if not as the model's ``pretrained_cfg`` says.

    Raises:
        InputError: for images that the model does not take.
    """
    output = model.forward_pruned(images)
    dense_logits = model.forward_dense(images).logits
    if mean_std is None:
        plain = denormalise(images, model)
    else:
        mean, std = (images.new_tensor(value).reshape(-1, 1, 1) for value in mean_std)
        plain = (images * std + mean).clamp(0, 1)
    if names is None and model.num_classes > 0:
        names = class_names(model)
    return figure(
        plain,
        output,
        names=names,
        labels=labels,
        dense_logits=dense_logits,
        score_stage=score_stage,
    )


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure, all of it or nothing; the ending tells the format (``.png``, ``.pdf``).

    Args:
        figure: what :func:`figure` gave.
        path: where to; its folder is made if need be, a file that is there is replaced.

    Returns:
        The path.

    Raises:
        InputError: if matplotlib does not write such files, or nothing can be written there.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path}: a picture ends in .png, .pdf or .svg, got {path.suffix!r}")
    content = BytesIO()
    figure.savefig(content, format=kind, dpi=_DPI)
    # Written beside its place and then renamed: an interruption leaves the old picture or none.
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.getvalue())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


# ---------------------------------------------------------------- inside


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
        self.figure = Figure(figsize=(self._width, self._height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

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
        self._text(x, y + 0.24, first, size=10, color=_INK, weight="bold", ha="center")
        self._text(x, y + 0.08, second, size=8.5, color=_FAINT, ha="center")

    def caption(self, row: int, text: str) -> None:
        """One line under a row, cut where the page ends."""
        # About 0.075 inches for each character of this size.
        room = int((self._width - 2 * _MARGIN) / 0.075)
        text = text if len(text) <= room else text[: room - 1].rstrip() + "…"
        self._text(_MARGIN, self._bottom(row) - 0.18, text, size=9, color=_INK)

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

    def _text(self, x: float, y: float, text: str, **style: object) -> None:
        # A class name may hold a dollar sign: it is not mathematics.
        self.figure.text(x / self._width, y / self._height, text, parse_math=False, **style)


def _titles(output: PrunedOutput, score_stage: int) -> list[tuple[str, str]]:
    rows, columns = output.grid
    titles = [("input", f"{rows * columns} patches")]
    for stage, survived in enumerate(output.kept):
        kept = survived.float().mean().item()
        rest = ", rest merged" if merges(output, stage) else ""
        titles.append((f"stage {stage + 1}", f"{kept:.0%} kept{rest}"))
    if output.keep_scores:
        titles.append(("keep score", f"at stage {score_stage + 1}"))
    return titles


def merges(output: PrunedOutput, stage: int) -> bool:
    """Whether, as far as the output tells, patches that a stage dropped are part of kept ones."""
    return bool(output.groups) and bool((~output.kept[stage] & (output.groups[stage] >= 0)).any())


def _after_stage(
    image: Tensor, kept: Tensor, groups: Tensor | None, grid: tuple[int, int]
) -> Tensor:
    """The image with what is gone faded out, and what has merged as what it is part of."""
    if groups is None:
        return fade(image, kept, grid)
    gone = ~kept & (groups < 0)
    shown = fade(as_merged(image, kept, groups, grid), kept | gone, grid, strength=_MERGED_FADE)
    return fade(shown, ~gone, grid)


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), aspect="auto")


def _outline(axes: Axes, kept: Tensor, height: int, width: int) -> None:
    """A thin line between kept and dropped patches, which in a bright sky look alike."""
    rows, columns = kept.shape
    across = kept[1:] != kept[:-1]
    down = kept[:, 1:] != kept[:, :-1]
    lines = [((c, r + 1), (c + 1, r + 1)) for r, c in across.nonzero().tolist()]
    lines += [((c + 1, r), (c + 1, r + 1)) for r, c in down.nonzero().tolist()]
    # imshow puts the center of the first pixel at 0.
    scaled = np.array(lines).reshape(-1, 2, 2) * (width / columns, height / rows) - 0.5
    axes.add_collection(LineCollection(scaled, colors="#8b929b", linewidths=0.45), autolim=False)


def _show_scores(axes: Axes, bar: Axes, scores: Tensor) -> None:
    colors = colormaps[_SCORE_COLORS].with_extremes(bad="white")
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
    bar.tick_params(labelsize=7, length=0, pad=2, labelcolor=_FAINT)
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


def _as_rgb(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"an image is (3, height, width) or (1, height, width), got {tuple(image.shape)}"
        )
    return image.expand(3, -1, -1)


def _as_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    rows, columns = grid
    if values.shape != (rows * columns,):
        raise InputError(
            f"a grid of {rows}x{columns} patches needs {rows * columns} values, "
            f"got shape {tuple(values.shape)}"
        )
    return values.reshape(rows, columns)


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
