"""Loads a model for inference: in PyTorch, or an exported file."""

from __future__ import annotations

from pathlib import Path

import typer

from dynamicvit.budgets import keep_ratio_for, parse_budget, tiled_keep_ratios
from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT, or_untrained
from dynamicvit.core.schedule import Policy
from dynamicvit.errors import InputError
from dynamicvit.runtimes import ExportedModel, is_exported, load_exported


def load_at_budget(
    name: str,
    *,
    checkpoint: Path | None = None,
    addon: Path | None = None,
    keep_ratio: float | None = None,
    policy: Policy | None = None,
    method: str | None = None,
    tile: int | None = None,
    macs: str | None = None,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = True,
    schedule: Path | None = None,
    frames: int | None = None,
    tubelet: int | None = None,
) -> tuple[DynamicViT, tuple[int, int]]:
    """A model at a budget, and its image size.

    Args:
        name: as for :func:`~dynamicvit.checkpoints.loading.load`.
        checkpoint: likewise.
        addon: likewise.
        keep_ratio: likewise.
        policy: likewise.
        method: likewise.
        tile: rows of the tiles that each stage's tokens should fill.
        macs: in place of a keep ratio, for :func:`~dynamicvit.budgets.parse_budget`.
        image_size: height and width; by default the model's own.
        pretrained: as for ``load``.
        schedule: likewise, in place of a keep ratio and a policy.
        frames: likewise, of a video network.
        tubelet: likewise.

    Raises:
        InputError: for values that these refuse, and options that exclude each other.
    """
    if macs is not None and keep_ratio is not None:
        raise InputError(f"--keep-ratio {keep_ratio} and --macs {macs} are both budgets: give one")
    if macs is not None and tile is not None:
        raise InputError(f"--tile {tile} may round up, and --macs {macs} is a limit: give one")
    refuse_with_schedule(schedule, keep_ratio=keep_ratio, macs=macs, policy=policy, tile=tile)
    budget = None if macs is None else parse_budget(macs)
    model = load(
        name,
        checkpoint=checkpoint,
        addon=addon,
        keep_ratio=keep_ratio,
        policy=policy,
        method=method,
        pretrained=pretrained,
        schedule=schedule,
        frames=frames,
        tubelet=tubelet,
    )
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
    addon: Path | None = None,
    keep_ratio: float | None = None,
    policy: Policy | None = None,
    method: str | None = None,
    tile: int | None = None,
    image_size: tuple[int, int] | None = None,
    precision: str = "fp32",
    pretrained: bool = True,
    schedule: Path | None = None,
) -> tuple[DynamicViT | ExportedModel, tuple[int, int]]:
    """A model, by :func:`load_at_budget`, or an exported file in a precision, and its image size.

    Raises:
        InputError: as for ``load_at_budget``, and for options that are fixed in a file.
    """
    if not is_exported(name):
        model, size = load_at_budget(
            name,
            checkpoint=checkpoint,
            addon=addon,
            keep_ratio=keep_ratio,
            policy=policy,
            method=method,
            tile=tile,
            image_size=image_size,
            pretrained=pretrained,
            schedule=schedule,
        )
        model.warns_untrained = False  # say_if_untrained does
        return model, size
    fixed = {
        "--checkpoint": checkpoint,
        "--addon": addon,
        "--keep-ratio": keep_ratio,
        "--policy": policy,
        "--method": method,
        "--tile": tile,
        "--schedule": schedule,
    }
    refuse_fixed(name, fixed)
    exported = load_exported(name, precision)
    height, width = exported.description.input_size[1:]
    if image_size not in (None, (height, width)):
        raise InputError(
            f"--image-size {'x'.join(map(str, image_size))}: {name} takes images of "
            f"{height}x{width} pixels; export it again with another size"
        )
    return exported, (height, width)


def refuse_fixed(name: str, options: dict[str, object]) -> None:
    """Refuse options that are fixed in an exported file.

    Raises:
        InputError: naming the option and its value.
    """
    for option, value in options.items():
        if value is not None:
            raise InputError(f"{option} {value} is for a model; {name} is an exported file")


def refuse_with_dense(**options: object) -> None:
    """Refuse options of what is dropped for ``--dense``, which keeps every patch.

    Raises:
        InputError: naming the option.
    """
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None:
            raise InputError(f"{option} {value}: --dense keeps every patch")


def refuse_with_schedule(schedule: Path | None, **options: object) -> None:
    """Refuse options of how much is dropped where ``--schedule`` says that.

    Raises:
        InputError: naming the option.
    """
    for name, value in options.items():
        if schedule is not None and value not in (None, []):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} {value} and --schedule {schedule}: give one")


def say_if_untrained(name: str, model: PrunedClassifier) -> None:
    """Print a note on standard error if a model's prediction modules are untrained."""
    if isinstance(model, DynamicViT) and any(method.is_fresh for method in model.predictors):
        typer.echo(
            f"note: what chooses the patches of {name} is untrained, so they are chosen by chance: "
            f"train it (dynamicvit train){or_untrained(model.policy)}",
            err=True,
        )
