"""Keep ratios whose token counts fill the tiles in which processors multiply matrices.

A matrix unit (AMX, tensor cores) takes rows by the tile, and a kernel cuts what is left over into
smaller pieces. With one image a stage's tokens are the rows of every product: 68 of them can take
longer than 80 (docs/performance.md). The nearest whole number of tiles costs about the same MACs.
"""

from __future__ import annotations

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import ImageSize, costs_of
from dynamicvit.errors import InputError

#: Rows of a tile of AMX, in bfloat16 as in int8.
TILE = 16


def tiled_keep_ratios(
    model: DynamicViT, tile: int = TILE, image_size: ImageSize = None
) -> tuple[float, ...]:
    """For each stage the ratio next to the model's own that leaves a whole number of tiles.

    Counted are all tokens that go on, prefix tokens included. A stage that keeps every patch goes
    on doing so. Set ``model.keep_ratio`` to what is returned.

    Args:
        model: at the keep ratios to start from.
        tile: rows of a tile.
        image_size: as of :func:`~dynamicvit.costs.schedule_macs`.

    Returns:
        Shares of the N patches, never growing. Where a tile more or less is not to be had, what is
        left fills none: a single patch, or all that came.

    Raises:
        InputError: for a tile of less than one row.
    """
    if tile < 1:
        raise InputError(f"a tile has at least 1 row, got {tile}")
    costs = costs_of(model, len(model.schedule.stages), image_size)
    patches, prefix, counts = costs.num_patches, costs.num_prefix, [costs.num_patches]
    for kept, reduction in zip(model.schedule.kept(patches), costs.reductions, strict=True):
        prefix += reduction.adds
        rows = tile * ((2 * (prefix + kept) + tile) // (2 * tile))  # half a tile is rounded up
        # Rounded up, it may be more than there are.
        counts.append(patches if kept == patches else max(1, min(rows - prefix, counts[-1])))
    return tuple(count / patches for count in counts[1:])
