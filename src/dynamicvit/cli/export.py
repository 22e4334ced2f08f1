"""`dynamicvit export`: a model as a checked file for ONNX Runtime, OpenVINO or PyTorch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from dynamicvit.budgets import tiled_keep_ratios
from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.cli import app
from dynamicvit.cli.console import check_file, say
from dynamicvit.cli.inference import refuse_budget_of_dense
from dynamicvit.cli.options import (
    Checkpoint,
    ClassMapOption,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Model,
    NoPretrained,
    Released,
    Tile,
    check_one_model,
    chosen_model,
    parse_image_size,
)
from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import DENSE
from dynamicvit.errors import InputError
from dynamicvit.export import FORMATS, ExportMismatchError, export_int8, format_of, is_exported
from dynamicvit.export import export as export_model
from dynamicvit.export.quantization import CALIBRATION_IMAGES, INT8, Int8Result


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
    tile: Tile = None,
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
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 for .onnx and .xml; needs --calibrate.")
    ] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(help="Images to find int8's ranges with, of any source, labeled or not."),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(help="How many of them; others of the source are compared on.")
    ] = CALIBRATION_IMAGES,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of top-1 that int8 may cost: layers stay in float until it does not cost "
            "more. Without --validation, changed answers count."
        ),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Labeled images to compare the int8 file on.")
    ] = None,
    class_map: ClassMapOption = None,
    no_pretrained: NoPretrained = False,
) -> None:
    """Write MODEL as a file that other runtimes run, and check that it does the same.

    The file gives logits and the patches kept at each stage, and holds the labels and what is to
    be done to an image. If it differs from PyTorch, it is not written, and the exit code is 1; in
    int8 it may differ a little, and how much is said.
    """
    size = parse_image_size(image_size)
    named = format_of(output, file_format)
    int8 = {
        "--calibrate": calibrate,
        "--max-drop": max_drop,
        "--validation": validation,
        "--class-map": class_map,
    }
    _check_precision(precision, named, output, int8, {"--opset": opset, "--check": check})
    check_file("--output", output)
    if model_argument is not None and model_name is not None:
        raise InputError(f"{model_argument} and --model {model_name} both name a model: give one")
    model_name = model_name if model_argument is None else model_argument
    check_one_model(model_name, released)
    if dense:
        refuse_budget_of_dense(keep_ratio, tile)
    if is_exported(model_name):
        raise InputError(f"{model_name} is an exported file already: give the model it came from")
    name = chosen_model(model_name, released)
    model = load(name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=not no_pretrained)
    size = set_image_size(model, size)
    if tile is not None:
        model.keep_ratio = tiled_keep_ratios(model, tile, size)
    if dense:
        model = DynamicViT(model.backbone, DENSE, []).eval()
    fixed: dict[str, Any] = dict(
        file_format=file_format, image_size=size, batch=batch, crop_pct=crop_pct
    )
    console = Console()
    try:
        if precision == "int8":
            made = export_int8(
                model,
                output,
                calibrate=calibrate,
                images=calibration_images,
                max_drop=max_drop,
                validation=validation,
                class_map=class_map,
                **fixed,
            )
            _tell_int8(console, made, output)
            return
        result, pictures = export_model(model, output, opset=opset, check_on=check, **fixed)
    except ExportMismatchError as error:
        typer.echo(f"dynamicvit: {output} is not written: {error}", err=True)
        raise typer.Exit(1) from None
    ties = f", of {result.ties} after a tie" if result.ties else ""
    say(console, f"checked on {pictures.origin}: as in PyTorch, logits to {result.logit_error:.1g}")
    if not dense:
        say(console, f"the same patches kept{ties}")
    say(console, f"saved {output}: dynamicvit eval DATA --model {output}")


def _check_precision(
    precision: str, named: str, output: Path, int8: dict[str, Any], fp32: dict[str, Any]
) -> None:
    """Refuse int8 where it can't be, and options that only the other precision has."""
    if precision == "int8" and named not in INT8:
        kinds = " or ".join(FORMATS[known].suffix for known in INT8)
        raise InputError(f"--precision int8 writes {kinds} files, not {output}")
    other, needed = (fp32, "fp32") if precision == "int8" else (int8, "int8")
    for option, value in other.items():
        if value is not None:
            raise InputError(f"{option} {value} goes with --precision {needed}")
    if precision == "int8" and int8["--calibrate"] is None:
        raise InputError(
            "--precision int8 needs --calibrate IMAGES, of the kind that the file will see"
        )


def _tell_int8(console: Console, made: Int8Result, output: Path) -> None:
    found = made.agreement
    say(console, f"int8, calibrated on {made.calibrated_on}")
    say(console, f"compared on {made.compared_on}, {found.images} images:")
    say(console, f"  {found.answers:.1%} of the answers are as in PyTorch")
    if found.kept:
        kept = ", ".join(f"{share:.1%}" for share in found.kept)
        say(console, f"  {kept} of the patches kept")
    if found.top1 is not None and found.model_top1 is not None:
        say(console, f"  top-1 {found.top1:.2%}, in PyTorch {found.model_top1:.2%}")
    say(console, f"layers in float: {made.in_words}")
    say(console, f"saved {output}: dynamicvit eval DATA --model {output}")
