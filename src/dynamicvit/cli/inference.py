"""A model to run and not to change: in PyTorch, or an exported file."""

from __future__ import annotations

from pathlib import Path

import typer

from dynamicvit.budgets import keep_ratio_for, parse_budget, tiled_keep_ratios
from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.runtimes import ExportedModel, is_exported, load_exported


def load_at_budget(
    name: str,
    *,
    checkpoint: Path | None = None,
    keep_ratio: float | None = None,
    tile: int | None = None,
    macs: str | None = None,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = True,
) -> tuple[DynamicViT, tuple[int, int]]:
    """The model that a user names, at the budget that they ask for, and its image size.

    Args:
        name: as for :func:`~dynamicvit.checkpoints.loading.load`.
        checkpoint: likewise.
        keep_ratio: likewise.
        tile: rows of the tiles that each stage's tokens should fill.
        macs: in place of a keep ratio, as :func:`~dynamicvit.costs.parse_budget` reads it.
        image_size: height and width; by default the model's own.
        pretrained: as for ``load``.

    Raises:
        InputError: as these do, and for options that exclude each other.
    """
    if macs is not None and keep_ratio is not None:
        raise InputError(f"--keep-ratio {keep_ratio} and --macs {macs} both set it: give one")
    if macs is not None and tile is not None:
        raise InputError(f"--tile {tile} may round up, and --macs {macs} is a limit: give one")
    budget = None if macs is None else parse_budget(macs)
    model = load(name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=pretrained)
    size = set_image_size(model, image_size)
    if budget is not None:
        model.keep_ratio = keep_ratio_for(
            model, macs=budget.macs, fraction=budget.fraction, image_size=size
        )
    if tile is not None:
        model.keep_ratio = tiled_keep_ratios(model, tile, size)
    return model, size


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
    """The model or the exported file that a user names, and the image size that it takes.

    Args:
        name: as for :func:`load_at_budget`, or an exported file.
        checkpoint: as for :func:`load_at_budget`.
        keep_ratio: likewise.
        tile: likewise.
        image_size: likewise.
        precision: to run a file in.
        pretrained: as for :func:`load_at_budget`.

    Raises:
        InputError: as ``load_at_budget`` does, and for what is fixed in an exported file.
    """
    if not is_exported(name):
        model, size = load_at_budget(
            name,
            checkpoint=checkpoint,
            keep_ratio=keep_ratio,
            tile=tile,
            image_size=image_size,
            pretrained=pretrained,
        )
        model.warns_untrained = False  # say_if_untrained does
        return model, size
    fixed = {"--checkpoint": checkpoint, "--keep-ratio": keep_ratio, "--tile": tile}
    refuse_fixed(name, fixed)
    exported = load_exported(name, precision)
    height, width = exported.description.input_size[1:]
    if image_size not in (None, (height, width)):
        asked = "x".join(map(str, image_size))
        raise InputError(
            f"--image-size {asked}: the images of {name} have {height}x{width} pixels; leave it "
            f"out, or export the model again with it"
        )
    return exported, (height, width)


def refuse_fixed(name: str, options: dict[str, object]) -> None:
    """Refuse options beside an exported file, in which what they say is fixed.

    Raises:
        InputError: naming the option and its value.
    """
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{option} {value}: {name} is an exported file; export it again with")


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
    if isinstance(model, DynamicViT) and any(method.is_fresh for method in model.predictors):
        typer.echo(
            f"note: the prediction modules of {name} are untrained, so what they keep means "
            "nothing yet; give --checkpoint, or the folder of a trained model",
            err=True,
        )
