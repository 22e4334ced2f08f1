"""Static tokens: one ranking of the places, learned once and the same for every image.

Static sparsification in the paper (Section 4, strategies of sparsification): it shows how much of
the gain needs a choice for each image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.core.method import Choice, Grid
from dynamicvit.layers.tokens import Tokens

#: Log-odds for each unit of the parameter. Adam moves a lone number by about the learning rate in a
#: step, where a network's output moves with all of its weights: without the factor, a short run
#: would end before the places have found their order.
_PACE = 10.0


class StaticRanking(nn.Module, Choice):
    """N learned log-odds of keeping, one for each place; trained with the same losses.

    For images of another grid they are interpolated, bilinearly, as positions are.

    Args:
        grid: rows and columns of patches of the images that it learns from.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.places = nn.Parameter(torch.empty(grid[0] * grid[1]))
        nn.init.trunc_normal_(self.places, std=0.02)

    def log_probs(self, tokens: Tokens, grid: Grid) -> Tensor:
        odds = _PACE * self.places
        if grid != self.grid:
            laid_out = odds.reshape(1, 1, *self.grid)
            odds = F.interpolate(laid_out, grid, mode="bilinear", align_corners=False).flatten()
        odds = odds.expand(len(tokens.x), -1)
        if tokens.index is not None:
            odds = odds.gather(1, tokens.index)
        return torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=-1)
