"""What each patch looks like in a picture: kept, dropped, merged, or by its keep score."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from dynamicvit.errors import InputError

#: How far a merged patch fades: told from a kept one, while what it is part of is still seen.
MERGED_FADE = 0.5


def fade(
    image: Tensor,
    kept: Tensor,
    grid: tuple[int, int],
    strength: float = 0.82,
    towards: float = 1.0,
) -> Tensor:
    """The image with its dropped patches faded out.

    Args:
        image: ``(3, H, W)`` in [0, 1]; one channel is repeated for the three.
        kept: ``(N,)`` bool, in image order.
        grid: rows and columns of patches; N is their product.
        strength: from 0, which changes nothing, to 1, which leaves nothing of a dropped patch.
        towards: the brightness that dropped patches fade to, 1 for white.

    Returns:
        ``(3, H, W)``; kept patches are unchanged.

    Raises:
        InputError: if the shapes don't fit each other.
    """
    image = as_rgb(image)
    shown = as_grid(kept, grid).to(image.dtype)
    shown = F.interpolate(shown[None, None], size=image.shape[1:], mode="nearest")[0]
    return image.lerp(torch.full_like(image, towards), strength * (1 - shown))


def as_merged(image: Tensor, kept: Tensor, groups: Tensor, grid: tuple[int, int]) -> Tensor:
    """The image in which each merged patch looks like the kept patch it became part of.

    Args:
        image: ``(3, H, W)``.
        kept: ``(N,)`` bool, in image order.
        groups: ``(N,)``, which of the kept patches each patch is part of, -1 for none.
        grid: rows and columns of patches; N is their product.

    Returns:
        ``(3, H, W)``; kept patches, and those that are part of none, are unchanged.

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
    # As far from the corner of the one patch as from that of the other.
    y = y + ((source // columns - row) * height / rows).round().long()
    x = x + ((source % columns - column) * width / columns).round().long()
    return image[:, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def after_stage(
    image: Tensor, kept: Tensor, groups: Tensor | None, grid: tuple[int, int]
) -> Tensor:
    """The image after a stage: removed patches faded out, merged ones paler than their group.

    Args:
        image: ``(3, H, W)`` in [0, 1].
        kept: ``(N,)`` bool, in image order.
        groups: as for :func:`as_merged`; ``None`` if nothing merges.
        grid: rows and columns of patches.
    """
    if groups is None:
        return fade(image, kept, grid)
    removed = ~kept & (groups < 0)
    merged = as_merged(image, kept, groups, grid)
    return fade(fade(merged, kept | removed, grid, strength=MERGED_FADE), ~removed, grid)


def score_map(keep_scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """The rank of each patch's keep score, laid out as the image.

    Only the order of scores decides. Their values span orders of magnitude, so a few patches would
    hide how the others differ.

    Args:
        keep_scores: ``(N,)``; ``-inf`` for patches that earlier stages dropped.
        grid: rows and columns of patches; N is their product.

    Returns:
        ``(rows, columns)``, from 0 for the lowest score to 1 for the highest, equal scores midway
        between their ranks; NaN for patches dropped earlier, which matplotlib leaves blank.

    Raises:
        InputError: if N is not rows times columns.
    """
    scores = as_grid(keep_scores, grid).float().flatten()
    known = scores[~scores.isneginf()]
    below = (known[:, None] > known).sum(dim=1) + 0.5 * ((known[:, None] == known).sum(dim=1) - 1)
    ranks = torch.full_like(scores, float("nan"))
    ranks[~scores.isneginf()] = below / max(1, len(known) - 1)
    return ranks.reshape(grid)


def denormalize(images: Tensor, model: nn.Module) -> Tensor:
    """Undo the normalization that a model's weights expect.

    Args:
        images: ``(..., C, H, W)`` as the model takes them.
        model: its ``pretrained_cfg`` gives mean and standard deviation; timm's defaults without.

    Returns:
        The images in [0, 1].
    """
    config = resolve_model_data_config(model)
    mean, std = (images.new_tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return (images * std + mean).clamp(0, 1)


def as_rgb(image: Tensor) -> Tensor:
    """``(3, H, W)`` of an image with one or three channels.

    Raises:
        InputError: for any other shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(
            f"an image is (3, height, width) or (1, height, width), got {tuple(image.shape)}"
        )
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
