"""Structural downsampling: average-pool the grid of tokens before a block, for every image alike.

One of the paper's strategies of sparsification (Section 4): vision transformers that reduce their
resolution on the way (Wang et al., PVT, ICCV 2021, and others) do so without looking at the image.
Where it happens decides the MACs.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.core.combination import Combination
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Grid, Tokens

#: Patches along a side of those that become one.
_SIDE = 2


@register_method(
    "downsample",
    does="averages the grid 2×2 before one block, which decides the MACs",
    paper="Rao et al., NeurIPS 2021, Section 4",
)
class Downsampling(Combination):
    """Each 2×2 patches become one token, their mean; at an odd edge fewer.

    Nothing is chosen, so training and inference are the same network. A cell has the place of its
    first patch on the map to the image; in the token loss it is compared with the mean of the
    teacher's tokens of its patches.
    """

    takes_any_schedule = False

    @classmethod
    def schedules(cls, bound: Backbone) -> list[Schedule]:
        """One for each block before which it may happen.

        Raises:
            InputError: for a backbone of clips.
        """
        grid = bound.grid(*bound.image_size)
        if len(grid) != 2:
            raise InputError(
                f"method downsample averages {_SIDE}x{_SIDE} patches of an image; {bound.family} "
                f"has a grid of {len(grid)} axes, {'x'.join(map(str, grid))}"
            )
        share = prod(pooled_grid(grid)) / prod(grid)
        return [Schedule((block,), (share,)) for block in range(len(bound.blocks))]

    def combine(self, tokens: Tokens, count: int) -> Tokens:
        """The means of the cells; how many there are the grid decides, not ``count``.

        Raises:
            InputError: if tokens have been dropped before.
        """
        del count
        if tokens.index is not None:
            raise InputError("downsampling needs the whole grid: it must be the first stage")
        batch, _, width = tokens.patches.shape
        image = tokens.patches.transpose(1, 2).reshape(batch, width, *tokens.grid)
        # Only patches that are there count at an odd edge.
        pooled = F.avg_pool2d(image, _SIDE, ceil_mode=True)
        x = torch.cat([tokens.x[:, : tokens.num_prefix], pooled.flatten(2).transpose(1, 2)], dim=1)
        groups, index = _cells(tokens.grid, tokens.x.device)
        return replace(
            tokens,
            x=x,
            index=index.expand(batch, -1),
            groups=groups.expand(batch, -1),
            heads=None,
        )


def pooled_grid(grid: Grid) -> Grid:
    """Rows and columns of cells."""
    return -(-grid[0] // _SIDE), -(-grid[1] // _SIDE)


def _cells(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """``(N,)`` the cell of each patch, and the first patch of each cell."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    _, cells_across = pooled_grid(grid)
    groups = (rows // _SIDE)[:, None] * cells_across + columns // _SIDE
    first = rows[::_SIDE, None] * grid[1] + columns[::_SIDE]
    return groups.flatten(), first.flatten()
