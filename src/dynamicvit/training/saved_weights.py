"""The weights that a run is for: those that learn, their averages, or some between old and new."""

from __future__ import annotations

import copy

import torch
from timm.utils import ModelEmaV3
from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.training.objective import taught_by_dense_self
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


class Between:
    """The model with backbone weights on the way from the dense ones to those that learn.

    ``(1 - share) * dense + share * trained`` (WiSE-FT, Wortsman et al., CVPR 2022, equation 1).

    Args:
        model: the student.
        dense: the backbone as it was.
        share: of the way, in (0, 1].
    """

    def __init__(self, model: DynamicViT, dense: nn.Module, share: float) -> None:
        self._model, self._dense, self.share = model, dense, share
        self._made = copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def module(self) -> nn.Module:
        """The model with the weights as they are now, in ``eval()``."""
        self._made.load_state_dict(self._model.state_dict())
        before = dict(self._dense.named_parameters())
        with torch.no_grad():
            for name, weight in self._made.backbone.named_parameters():
                weight.copy_(before[name].lerp(weight, self.share))
        return self._made

    def update(self, model: DynamicViT, step: int) -> None:
        """Nothing: the weights are looked at when they are asked for."""


def check_interpolates(recipe: Recipe, model: DynamicViT) -> None:
    """Refuse weights on the way from the dense ones where no teacher has these."""
    if recipe.interpolate < 1 and not taught_by_dense_self(recipe, model):
        raise InputError(
            f"interpolate {recipe.interpolate:g} needs the dense model among the teachers: weight "
            "losses.distillation, token or feature, or set interpolate=1"
        )


def saved_weights(
    model: DynamicViT, dense: DynamicViT | None, recipe: Recipe
) -> Averages | Between | None:
    """What a recipe saves in place of the weights that learn, if it does."""
    if recipe.ema:
        return Averages(model, recipe.ema, freeze_backbone=recipe.freeze_backbone)
    if recipe.interpolate < 1:
        assert dense is not None  # as check_interpolates says
        return Between(model, dense.backbone, recipe.interpolate)
    return None
