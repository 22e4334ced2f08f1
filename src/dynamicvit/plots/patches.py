"""The look of patches in a picture: kept, dropped, merged, or by keep score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dynamicvit.errors import InputError

_DARK, _LIGHT, _CONTRAST = 0.12, 0.62, 0.3  # of what is left of a dropped patch
_NIGHT = 0.3  # median brightness below which an image is dark
_GRAY = (0.299, 0.587, 0.114)  # luma of red, green and blue (ITU-R BT.601)
_PALE = 0.5  # merged patches: different from kept ones, and still visible


def dim(image: Tensor, kept: Tensor, grid: tuple[int, int], dark: bool | None = None) -> Tensor:
    """The image with its dropped patches in gray, in which their content can still be seen.

    The gray is dark, in a dark image light.

    Args:
        image: ``(C, H, W)`` in [0, 1], as for :func:`as_rgb`.
        kept: ``(N,)`` bool, in image order.
        grid: rows and columns of patches; N is their product.
        dark: whether the image counts as dark; by default :func:`is_dark` says.

    Returns:
        ``(3, H, W)``; kept patches are unchanged.

    Raises:
        InputError: for shapes that don't match.
    """
    image = as_rgb(image)
    level = _LIGHT if (is_dark(image) if dark is None else dark) else _DARK
    return torch.where(_pixels(kept, grid, image), image, level + _CONTRAST * _gray(image))


def is_dark(image: Tensor) -> bool:
    """Whether most of a ``(3, H, W)`` image is dark."""
    return bool(_gray(image).median() < _NIGHT)


def _gray(image: Tensor) -> Tensor:
    return (image * image.new_tensor(_GRAY).reshape(3, 1, 1)).sum(dim=0)


def as_merged(image: Tensor, kept: Tensor, groups: Tensor, grid: tuple[int, int]) -> Tensor:
    """The image with each merged patch as a copy of the kept patch that it is part of.

    Args:
        image: ``(3, H, W)``.
        kept: ``(N,)`` bool, in image order.
        groups: ``(N,)`` index, among the kept patches, of the one each patch is part of; -1 for
            none.
        grid: rows and columns of patches; N is their product.

    Returns:
        ``(3, H, W)``; kept patches and removed ones are unchanged.

    Raises:
        InputError: if N is not rows times columns.
    """
    rows, columns = grid
    places = as_grid(kept, grid).flatten().nonzero().flatten()
    own = torch.arange(rows * columns)
    source = own if not len(places) else torch.where(groups < 0, own, places[groups.clamp(min=0)])
    source = torch.where(kept, own, source).reshape(rows, columns)
    height, width = image.shape[1:]
    y, x = torch.arange(height)[:, None], torch.arange(width)
    row, column = y * rows // height, x * columns // width
    source = source[row, column]
    # The same offset from the corner of either patch.
    y = y + ((source // columns - row) * height / rows).round().long()
    x = x + ((source % columns - column) * width / columns).round().long()
    return image[:, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def after_stage(
    image: Tensor,
    kept: Tensor,
    groups: Tensor | None,
    grid: tuple[int, int],
    dark: bool | None = None,
) -> Tensor:
    """The image after a stage, with merged patches as paler copies and removed ones dimmed.

    Arguments are as for :func:`as_merged` and :func:`dim`. Without ``groups`` merged patches are
    dimmed as well.
    """
    if groups is None:
        return dim(image, kept, grid, dark)
    merged = ~kept & (groups >= 0)
    copies = as_merged(image, kept, groups, grid)
    copies = copies.lerp(torch.ones_like(copies), _PALE * _pixels(merged, grid, image).to(copies))
    return dim(copies, kept | merged, grid, dark)


def _pixels(patches: Tensor, grid: tuple[int, int], image: Tensor) -> Tensor:
    """``(1, H, W)`` bool: the pixels of some patches, given as ``(N,)`` bool."""
    shown = as_grid(patches, grid).to(image.dtype)
    return F.interpolate(shown[None, None], size=image.shape[1:], mode="nearest")[0].bool()


def score_map(keep_scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """The rank of each patch's keep score, as values span orders of magnitude.

    Args:
        keep_scores: ``(N,)``; ``-inf`` for patches dropped by earlier stages.
        grid: rows and columns of patches; N is their product.

    Returns:
        ``(rows, columns)`` from 0 for the lowest score to 1 for the highest, with equal scores at
        their mean rank, and NaN for patches dropped earlier.

    Raises:
        InputError: if N is not rows times columns.
    """
    scores = as_grid(keep_scores, grid).float().flatten()
    known = scores[~scores.isneginf()]
    below = (known[:, None] > known).sum(dim=1) + 0.5 * ((known[:, None] == known).sum(dim=1) - 1)
    ranks = torch.full_like(scores, float("nan"))
    ranks[~scores.isneginf()] = below / max(1, len(known) - 1)
    return ranks.reshape(grid)


def as_picture(image: Tensor) -> Image.Image:
    """``(3, H, W)`` in [0, 1] in eight bits."""
    return Image.fromarray((255 * image).round().byte().movedim(0, -1).numpy())


def as_rgb(image: Tensor) -> Tensor:
    """``(3, H, W)`` of a gray image, one in RGB, or one in RGBA, on white.

    Args:
        image: ``(C, H, W)`` in [0, 1] with 1, 3 or 4 channels.

    Raises:
        InputError: for any other shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise InputError(
            f"an image must be (1, 3 or 4, height, width) to draw, got {tuple(image.shape)}"
        )
    if len(image) == 4:
        return image[:3] * image[3] + 1 - image[3]
    return image.expand(3, -1, -1)


def as_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(N,)`` values as ``(rows, columns)``.

    Raises:
        InputError: if N is not rows times columns.
    """
    rows, columns = grid
    if values.shape != (rows * columns,):
        raise InputError(
            f"a grid of {rows}x{columns} patches needs {rows * columns} values, "
            f"got shape {tuple(values.shape)}"
        )
    return values.reshape(rows, columns)
