"""Exponential averages of the weights that learn."""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.training.recipe import Recipe


class Averages:
    """The model with averaged weights in place of those that learn.

    Args:
        model: the student.
        decay: of the averages.
        freeze_backbone: the backbone does not learn: it is shared, neither copied nor averaged.

    Attributes:
        module: the model with the averages, in ``eval()``.
    """

    def __init__(self, model: DynamicViT, decay: float, *, freeze_backbone: bool = False) -> None:
        learns = model.predictors if freeze_backbone else model
        # At first over about a tenth of the steps so far: the untrained modules fade at once.
        self._ema = ModelEmaV3(
            learns, decay=decay, use_warmup=True, warmup_gamma=10.0, warmup_power=1.0
        )
        self.freeze_backbone = freeze_backbone
        self.module: nn.Module = self._ema.module
        if freeze_backbone:
            averaged = [*self._ema.module.children()]
            self.module = model.like(model.bound, model.schedule, averaged).eval()

    def update(self, model: DynamicViT, step: int) -> None:
        """Take the weights after a step into the averages."""
        self._ema.update(model.predictors if self.freeze_backbone else model, step=step)


def averages_of(model: DynamicViT, recipe: Recipe) -> Averages | None:
    """Those that a recipe asks for, if any."""
    if not recipe.ema:
        return None
    return Averages(model, recipe.ema, freeze_backbone=recipe.freeze_backbone)
