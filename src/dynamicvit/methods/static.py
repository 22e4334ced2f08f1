"""Static tokens: one ranking of the places, learned once and the same for every image.

Static sparsification in the paper (Section 4, strategies of sparsification): it shows how much of
the gain needs a choice for each image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.core.method import Choice
from dynamicvit.layers.tokens import Grid, Tokens

#: Log-odds for each unit of the parameter. Adam moves a lone number by about the learning rate in a
#: step, where a network's output moves with all of its weights: without the factor, a short run
#: would end before the places have found their order.
_PACE = 10.0


class StaticRanking(Choice):
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

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """The learned log-odds of the tokens' places."""
        scores = _PACE * self.places
        if tokens.grid != self.grid:
            laid_out = scores.reshape(1, 1, *self.grid)
            laid_out = F.interpolate(laid_out, tokens.grid, mode="bilinear", align_corners=False)
            scores = laid_out.flatten()
        scores = scores.expand(tokens.x.shape[0], -1)
        return scores if tokens.index is None else scores.gather(1, tokens.index)
