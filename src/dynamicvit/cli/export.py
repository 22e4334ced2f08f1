"""`dynamicvit export`: a model as a checked file for ONNX Runtime, OpenVINO or PyTorch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dynamicvit.cli import app
from dynamicvit.cli.console import check_file, say
from dynamicvit.cli.options import (
    Checkpoint,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Model,
    NoPretrained,
    Released,
    check_one_model,
    chosen_model,
    parse_image_size,
)
from dynamicvit.errors import InputError
from dynamicvit.export import FORMATS, ExportMismatchError, format_of, is_exported
from dynamicvit.export import export as export_model
from dynamicvit.loading import load_model, set_image_size
from dynamicvit.macs import DENSE
from dynamicvit.model import DynamicViT


@app.command()
def export(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .onnx, .xml (OpenVINO) or .pt2.", readable=False
        ),
    ],
    model_argument: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As for --model.")
    ] = None,
    model_name: Model = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(FORMATS)}; by default by the file's ending."),
    ] = None,
    keep_ratio: KeepRatio = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the backbone alone: every patch is kept.")
    ] = False,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    batch: Annotated[
        int | None, typer.Option(help="Images in a batch, fixed; by default any number.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of ONNX, 18 or later.")] = None,
    check: Annotated[
        str | None,
        typer.Option(help="Images to compare the file with PyTorch on; else two photographs."),
    ] = None,
    no_pretrained: NoPretrained = False,
) -> None:
    """Write MODEL as a file that other runtimes run, and check that it does the same.

    The file gives logits and the patches kept at each stage, and holds the labels and what is to
    be done to an image. If it differs from PyTorch, it is not written, and the exit code is 1.
    """
    size = parse_image_size(image_size)
    format_of(output, file_format)
    check_file("--output", output)
    if model_argument is not None and model_name is not None:
        raise InputError(f"{model_argument} and --model {model_name} both name a model: give one")
    model_name = model_name if model_argument is None else model_argument
    check_one_model(model_name, released)
    if is_exported(model_name):
        raise InputError(f"{model_name} is an exported file already: give the model it came from")
    name = chosen_model(model_name, released)
    model = load_model(
        name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=not no_pretrained
    )
    size = set_image_size(model, size)
    if dense:
        if keep_ratio is not None:
            raise InputError(f"--dense keeps every patch: leave --keep-ratio {keep_ratio} out")
        model = DynamicViT(model.backbone, DENSE, []).eval()
    try:
        result, pictures = export_model(
            model,
            output,
            file_format=file_format,
            image_size=size,
            batch=batch,
            opset=opset,
            crop_pct=crop_pct,
            check_on=check,
        )
    except ExportMismatchError as error:
        typer.echo(f"dynamicvit: {output} is not written: {error}", err=True)
        raise typer.Exit(1) from None
    console = Console()
    ties = f", of {result.ties} after a tie" if result.ties else ""
    say(console, f"checked on {pictures.origin}: as in PyTorch, logits to {result.logit_error:.1g}")
    if not dense:
        say(console, f"the same patches kept{ties}")
    say(console, f"saved {output}: dynamicvit eval DATA --model {output}")
