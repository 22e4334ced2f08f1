"""The paper's learning-rate rule: prediction modules at full rate, the backbone at a fraction."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from torch import nn
from torch.optim import Optimizer

from dynamicvit.core.model import DynamicViT
from dynamicvit.training.recipe import Recipe

#: Power of the polynomial decay of segmentation models.
POLY = 0.9


def create_optimizer(model: DynamicViT, recipe: Recipe) -> Optimizer:
    """AdamW or SGD over four groups: prediction modules and backbone, each with and without decay.

    A fresh classifier is in two of its own, at the full rate.
    """
    spared = model.no_weight_decay()
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        # What is read with beside the backbone, as a segmentation head, learns as the backbone.
        part = "predictors" if name.startswith("predictors.") else "backbone"
        rest = name.removeprefix("backbone.")
        if part == "backbone" and (recipe.freeze_backbone or rest in recipe.frozen):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        part = "classifier" if part == "backbone" and rest in recipe.fresh else part
        decay = 0.0 if parameter.ndim <= 1 or name in spared else recipe.weight_decay
        groups.setdefault((part, decay), []).append(parameter)
    return create_optimizer_v2(
        [
            {
                "params": parameters,
                "weight_decay": decay,
                "name": part,
                "lr_scale": recipe.backbone_lr_scale if part == "backbone" else 1.0,
            }
            for (part, decay), parameters in groups.items()
        ],
        opt=recipe.optimizer,
        lr=recipe.learning_rate,
    )


class LearningRate:
    """Warm-up and decay for each step, and the backbone's frozen start.

    Args:
        optimizer: of :func:`create_optimizer`.
        recipe: the rates and shares of the run.
        steps: of the whole run.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, steps: int) -> None:
        warmup = round(recipe.warmup * steps)
        self.optimizer = optimizer
        self.frozen_steps = round(recipe.backbone_frozen * steps)
        kind: Any = CosineLRScheduler
        if recipe.lr_decay == "poly":
            kind = partial(PolyLRScheduler, power=POLY)
        self.decay = kind(
            optimizer,
            t_initial=max(2, steps - warmup),
            lr_min=min(recipe.min_learning_rate, recipe.learning_rate),
            warmup_t=warmup,
            warmup_lr_init=min(recipe.min_learning_rate, recipe.learning_rate),
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def set(self, step: int) -> None:
        """Set the rates for a step, counted from 0."""
        self.decay.step_update(step)
        if step < self.frozen_steps:
            for group in self.optimizer.param_groups:
                if group["name"] == "backbone":
                    group["lr"] = 0.0
