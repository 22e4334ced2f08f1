"""The model that a run trains: loaded by its name, or made of a network that is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of
from dynamicvit.errors import InputError
from dynamicvit.sparsification import sparsify
from dynamicvit.training.recipe import Recipe

#: How a dense network chooses tokens where a recipe does not say, but for the default of images.
TRAINED_METHOD = "dynamicvit"


def student_for(
    named: str | Path | nn.Module,
    recipe: Recipe,
    checkpoint: str | Path | None,
    addon: str | Path | None,
    pretrained: bool,
    default_method: str | None = TRAINED_METHOD,
    frames: int | None = None,
    tubelet: int | None = None,
) -> tuple[DynamicViT, dict[str, Any]]:
    """The model, and what the recipe then says of it.

    Args:
        named: a name or folder; a dense network; or a model, whose own schedule then counts.
        recipe: of the run.
        checkpoint: a file of weights, for a name.
        addon: prediction modules, for a name or a dense network.
        pretrained: as for :func:`~dynamicvit.load`.
        default_method: how a dense network chooses tokens where the recipe does not say;
            ``None`` for what :func:`~dynamicvit.sparsify` gives it.
        frames: as for :func:`~dynamicvit.load`, for a name.
        tubelet: likewise.

    Raises:
        InputError: for a model that can't be had, or drops no tokens and has no teacher.
    """
    if isinstance(named, nn.Module) and frames is not None:
        raise InputError(f"frames {frames} is for a name: inflate the network first")
    given = core_of(named) if isinstance(named, nn.Module) else None
    if isinstance(given, DynamicViT):
        own = given.schedule
        said = {"keep_ratio": own.keep_ratios, "stages": own.stages}
        return given, said | {"restore_before": own.restore_before}
    method = recipe.method or default_method
    if isinstance(named, nn.Module) and addon is None:
        if checkpoint is not None:
            raise InputError(f"a network has its own weights: leave checkpoint {checkpoint} out")
        made = core_of(sparsify(named, recipe.keep_ratio, recipe.stages, recipe.policy, method))
        assert isinstance(made, DynamicViT)
        return _restoring(made, recipe), {}
    name = type(named).__name__ if isinstance(named, nn.Module) else str(named)
    model = load(
        named,
        checkpoint=checkpoint,
        addon=addon,
        keep_ratio=recipe.keep_ratio,
        stages=recipe.stages,
        policy=recipe.policy,  # also of a model that had another: it learns who should stay now
        method=recipe.method,
        default_method=default_method,
        pretrained=pretrained,
        frames=frames,
        tubelet=tubelet,
    )
    if not model.schedule.stages and recipe.method is None and not recipe.asks_external_teacher:
        made = core_of(sparsify(model, recipe.keep_ratio, recipe.stages, recipe.policy, method))
        assert isinstance(made, DynamicViT)
        model = made.eval()
    if not model.schedule.stages and not recipe.asks_external_teacher:
        raise InputError(
            f"{name} with method {model.method.name} has no stage that drops tokens: give it "
            "another network as --teacher, or compare methods with `dynamicvit compare`"
        )
    return _restoring(model, recipe), {"model": name}


def _restoring(model: DynamicViT, recipe: Recipe) -> DynamicViT:
    """The model whose dropped tokens come back where the recipe says so."""
    if recipe.restore_before is not None:
        model.schedule = replace(model.schedule, restore_before=recipe.restore_before)
    return model
