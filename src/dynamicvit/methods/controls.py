"""Controls: tokens chosen by chance, and by place alone, the same for every image.

The paper's Section 4 (strategies of sparsification): they show how much of the gain needs a choice,
and how much needs one for each image.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.backbones import Backbone
from dynamicvit.core.method import Choice, Method
from dynamicvit.core.registry import register_method
from dynamicvit.layers.tokens import Grid, Tokens

_PAPER = "Rao et al., NeurIPS 2021, Section 4"

#: Log-odds for each unit of the parameter. Adam moves a lone number by about the learning rate in a
#: step, where a network's output moves with all of its weights: without the factor, a short run
#: would end before the places have found their order.
_PACE = 10.0


@register_method("random", does="drops any tokens", paper=_PAPER)
class RandomScores(Choice):
    """Every token has the same chance, drawn anew each call. A control, not a method to use."""

    works_untrained = True
    compares_images = False

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """Log-odds of uniform random probabilities."""
        shape = tokens.patches.shape[:2]
        return torch.rand(shape, device=tokens.x.device).clamp(1e-6, 1 - 1e-6).logit()


@register_method("static", does="drops the same places of every image, learned", paper=_PAPER)
class StaticRanking(Choice):
    """N learned log-odds of keeping, one for each place; trained with the same losses.

    For inputs of another grid they are interpolated, linearly along each axis, as positions are.

    Args:
        grid: patches along each axis of the inputs that it learns from.
    """

    compares_images = False

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.places = nn.Parameter(torch.empty(prod(grid)))
        nn.init.trunc_normal_(self.places, std=0.02)
        self.register_buffer("_at_first", self.places.detach().clone(), persistent=False)

    @classmethod
    def for_stage(cls, bound: Backbone) -> Method:
        return cls(bound.grid(*bound.image_size))

    @property
    def is_fresh(self) -> bool:
        return torch.equal(self.places, self._at_first)

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """The learned log-odds of the tokens' places."""
        return self(tokens)

    def forward(self, tokens: Tokens) -> Tensor:
        """The same, called as a module: so are its weights moved to where they are needed."""
        scores = _PACE * self.places
        if tokens.grid != self.grid:
            laid_out = scores.reshape(1, 1, *self.grid)
            mode = "bilinear" if len(self.grid) == 2 else "trilinear"
            laid_out = F.interpolate(laid_out, tokens.grid, mode=mode, align_corners=False)
            scores = laid_out.flatten()
        scores = scores.expand(tokens.x.shape[0], -1)
        return scores if tokens.index is None else scores.gather(1, tokens.index)
