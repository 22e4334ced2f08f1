"""`dynamicvit eval`: how right a model is on a folder of images."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import nn

from dynamicvit.cli import app
from dynamicvit.cli.options import Checkpoint, ClassMapOption, Precision, Strict, Threads, Workers
from dynamicvit.data import ImageData, Loader, class_map_for, eval_transform
from dynamicvit.errors import InputError
from dynamicvit.evaluation import EvaluationResult, evaluate
from dynamicvit.loading import load_backbone, load_model
from dynamicvit.macs import resolve_image_size
from dynamicvit.model import DynamicViT

_NAMED = 10
"""How many skipped images are listed; all are in the JSON, and in the warnings."""


@app.command("eval")
def eval_command(
    data: Annotated[
        Path,
        typer.Argument(help="Folder of class folders, a .tar of them, or a flat folder."),
    ],
    model_name: Annotated[
        str, typer.Option("--model", "-m", help="A timm name, or the folder of a saved model.")
    ],
    checkpoint: Checkpoint = None,
    keep_ratio: Annotated[
        float | None, typer.Option(help="Keep ratio ρ; the stages keep ρ, ρ², ρ³, ...")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Evaluate the backbone alone: every patch is kept.")
    ] = False,
    compare_dense: Annotated[
        bool, typer.Option("--compare-dense", help="Also count agreement with the dense backbone.")
    ] = False,
    dense_checkpoint: Annotated[
        Path | None,
        typer.Option(help="Compare with these dense weights: what the model was trained from."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 32,
    precision: Precision = "fp32",
    class_map: ClassMapOption = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Folder names are no classes: agreement only.")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square the model sees; by default its own.")
    ] = None,
    crop_pct: Annotated[
        float | None, typer.Option(help="Share of the short side that the centre crop takes.")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained/--no-pretrained", help="Load timm's weights.")
    ] = True,
    strict: Strict = False,
    workers: Workers = 1,
    threads: Threads = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the numbers; - prints them.")
    ] = None,
) -> None:
    """Evaluate MODEL on the images of DATA: top-1, top-5, agreement with its dense self.

    Each readable image is counted once; unreadable ones are named and counted nowhere.
    """
    _check_json(json_file)
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=json_file == "-")
    images = ImageData(data, labelled=False if unlabelled else None, strict=strict)
    compare_dense = compare_dense or dense_checkpoint is not None
    if not images.labelled and not compare_dense:
        raise InputError(f"{data} has no labels to count right answers by: add --compare-dense")
    model = load_model(
        model_name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=pretrained
    )
    if model.num_classes < 1:
        raise InputError(f"{model_name} has no classifier, so there is no answer to evaluate")
    teacher = _teacher(model, dense_checkpoint) if compare_dense else None
    for network in (model.backbone, teacher):
        _resize(network, image_size)
    origin = None
    if images.labelled:
        chosen = class_map_for(images, model.num_classes, class_map)
        images, origin = images.with_class_map(chosen.index), chosen.origin
        console.print(f"class map: {origin}", highlight=False)
    images = images.with_transform(eval_transform(model, image_size, crop_pct))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = _with_progress(
        model.backbone if dense else model,
        Loader(images, batch_size, num_workers=workers),
        dense=teacher,
        device=device,
        amp_dtype=torch.bfloat16 if precision == "bf16" else None,
    )
    settings: dict[str, Any] = {
        "model": model_name,
        "checkpoint": checkpoint and str(checkpoint),
        "dense_checkpoint": dense_checkpoint and str(dense_checkpoint),
        "data": str(data),
        "class_map": origin,
        "stages": () if dense else model.schedule.stages,
        "keep_ratios": () if dense else model.schedule.keep_ratios,
        "image_size": resolve_image_size(model, image_size),
        "crop_pct": crop_pct,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
        "torch": torch.__version__,
    }
    _print(console, settings, result)
    _write_json(json_file, settings, result)


# ---------------------------------------------------------------- the models


def _teacher(model: DynamicViT, checkpoint: Path | None) -> nn.Module:
    """What to agree with: the model's own backbone, or the same architecture with other weights."""
    if checkpoint is None:
        return model.backbone
    architecture = model.pretrained_cfg.get("architecture")
    if not architecture:
        raise InputError(
            f"--dense-checkpoint {checkpoint}: timm has no name for this backbone; "
            "use --compare-dense"
        )
    return load_backbone(architecture, checkpoint)


def _resize(backbone: Any, image_size: int | None) -> None:
    """Let a backbone take square images of another size, by timm's own means."""
    if backbone is None or image_size is None:
        return
    rows, columns = backbone.patch_embed.patch_size
    if image_size < max(rows, columns) or image_size % rows or image_size % columns:
        raise InputError(
            f"image size {image_size}: this model takes multiples of its {rows}x{columns} patches"
        )
    if hasattr(backbone, "set_input_size"):
        backbone.set_input_size(img_size=(image_size, image_size))


# ---------------------------------------------------------------- running


def _with_progress(model: nn.Module, loader: Loader, **options: Any) -> EvaluationResult:
    """Evaluate under a bar with the rate and the time left, on a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=False),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=loader.num_images, rate="")

        def advance(images: int) -> None:
            bar.advance(task, images)
            speed = bar.tasks[0].speed
            bar.update(task, rate="" if speed is None else f"{speed:.1f} images/s")

        return evaluate(model, loader, progress=advance, **options)


# ---------------------------------------------------------------- printing


def _print(console: Console, settings: dict[str, Any], result: EvaluationResult) -> None:
    ratios = ", ".join(f"{ratio:.3g}" for ratio in settings["keep_ratios"])
    console.print(
        f"{settings['model']}, {f'keeps {ratios} of the patches' if ratios else 'dense'}, "
        f"{settings['precision']}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, share in (
        ("top-1", result.top1),
        ("top-5", result.top5),
        ("dense top-1", result.dense_top1),
        ("agreement with dense", result.agreement),
    ):
        if share is not None:
            table.add_row(name, f"{100 * share:.2f} %")
    table.add_row("images", str(result.images))
    table.add_row("images/s, reading included", f"{result.images_per_second:.1f}")
    if result.skipped:
        table.add_row("left out, unreadable", str(len(result.skipped)))
    console.print(table, highlight=False)
    for path in result.skipped[:_NAMED]:
        console.print(f"  {path}", highlight=False, markup=False, soft_wrap=True)
    if len(result.skipped) > _NAMED:
        console.print(f"  and {len(result.skipped) - _NAMED} more", highlight=False)


def _check_json(json_file: str | None) -> None:
    """Refused before minutes are spent on what would be written."""
    if json_file is None or json_file == "-":
        return
    path = Path(json_file)
    if path.is_dir():
        raise InputError(f"--json {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"--json {path}: no permission to write there")


def _write_json(json_file: str | None, settings: dict[str, Any], result: EvaluationResult) -> None:
    if json_file is None:
        return
    numbers = {**settings, **asdict(result), "images_per_second": result.images_per_second}
    text = json.dumps(numbers, indent=2)
    if json_file == "-":
        typer.echo(text)
        return
    path = Path(json_file)
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text + "\n")
    draft.replace(path)
