"""A model to run and not to change: in PyTorch, or an exported file."""

from __future__ import annotations

from pathlib import Path

import typer

from dynamicvit.budgets import tiled_keep_ratios
from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.errors import InputError
from dynamicvit.export import ExportedModel, is_exported, load_exported


def load_for_inference(
    name: str,
    *,
    checkpoint: Path | None = None,
    keep_ratio: float | None = None,
    tile: int | None = None,
    image_size: tuple[int, int] | None = None,
    precision: str = "fp32",
    pretrained: bool = True,
) -> tuple[DynamicViT | ExportedModel, tuple[int, int]]:
    """The model that a user names, and the height and width of the images that it takes.

    Args:
        name: as for :func:`~dynamicvit.checkpoints.loading.load`, or an exported file.
        checkpoint: likewise.
        keep_ratio: likewise.
        tile: rows of the tiles that each stage's tokens should fill; by default any number stays.
        image_size: height and width; by default the model's own.
        precision: to run in.
        pretrained: as for ``load``.

    Raises:
        InputError: as ``load`` does, and for what is fixed in an exported file.
    """
    if not is_exported(name):
        model = load(name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=pretrained)
        size = set_image_size(model, image_size)
        if tile is not None:
            model.keep_ratio = tiled_keep_ratios(model, tile, size)
        return model, size
    if checkpoint is not None:
        raise InputError(f"{name} has its weights: leave --checkpoint {checkpoint} out")
    if keep_ratio is not None:
        raise InputError(
            f"the keep ratio of {name} is fixed: leave --keep-ratio {keep_ratio} out, or export "
            "the model again with it"
        )
    if tile is not None:
        raise InputError(f"what {name} keeps is fixed: leave --tile {tile} out, or export with it")
    exported = load_exported(name, precision)
    height, width = exported.description.input_size[1:]
    if image_size not in (None, (height, width)):
        raise InputError(
            f"the images of {name} have {height}x{width} pixels: leave --image-size out, or export "
            "the model again with it"
        )
    return exported, (height, width)


def refuse_budget_of_dense(keep_ratio: float | None, tile: int | None) -> None:
    """Refuse what says how much is kept beside ``--dense``, which keeps everything.

    Raises:
        InputError: naming the option.
    """
    for option, value in (("--keep-ratio", keep_ratio), ("--tile", tile)):
        if value is not None:
            raise InputError(f"--dense keeps every patch: leave {option} {value} out")


def say_if_untrained(name: str, model: PrunedClassifier) -> None:
    """Say on standard error that what a model keeps means nothing, if that is so.

    Args:
        name: the model's, as the user wrote it.
        model: the model.
    """
    if _untrained(model):
        typer.echo(
            f"note: the prediction modules of {name} are untrained, so what they keep means "
            "nothing yet; give --checkpoint, or the folder of a trained model",
            err=True,
        )


def _untrained(model: PrunedClassifier) -> bool:
    """Whether the prediction modules are as initialized: with biases of exactly zero."""
    if not isinstance(model, DynamicViT):  # they can't be looked into
        return False
    own = (module for module in model.predictors.modules() if isinstance(module, PredictionModule))
    return any(not module.head[-1].bias.any() for module in own)
