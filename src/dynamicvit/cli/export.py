"""`dynamicvit export`: a model as a checked file for ONNX Runtime, OpenVINO or PyTorch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dynamicvit.cli.console import check_file, say
from dynamicvit.cli.inference import load_at_budget, refuse_budget_of_dense
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
from dynamicvit.errors import InputError
from dynamicvit.runtimes import (
    CALIBRATION_IMAGES,
    FORMATS,
    Exported,
    ExportMismatchError,
    format_of,
    is_exported,
)
from dynamicvit.runtimes import export as export_model

_FILE, _INT8 = "File", "Int8"


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
    keep_ratio: KeepRatio = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the backbone alone: every patch is kept.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 for .onnx and .xml; needs --calibrate.")
    ] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(help="Images to find int8's ranges with, of any source, labeled or not."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Images to compare the file with PyTorch on: labeled ones for int8; else two "
            "photographs, or others of --calibrate."
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    no_pretrained: NoPretrained = False,
    tile: Tile = None,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    class_map: ClassMapOption = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"{', '.join(FORMATS)}; by default by the file's ending.",
            rich_help_panel=_FILE,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Images in a batch, fixed; by default any number.", rich_help_panel=_FILE
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Of ONNX, 18 or later.", rich_help_panel=_FILE)
    ] = None,
    calibration_images: Annotated[
        int,
        typer.Option(
            help="Images of --calibrate to calibrate on; others are compared on.",
            rich_help_panel=_INT8,
        ),
    ] = CALIBRATION_IMAGES,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of top-1 that int8 may cost: layers stay in float until it does not cost "
            "more. Without --validation, changed answers count.",
            rich_help_panel=_INT8,
        ),
    ] = None,
) -> None:
    """Write MODEL as a file that other runtimes run, and check that it does the same.

    The file gives logits and the patches kept at each stage, and holds the labels and what is to
    be done to an image. If it differs from PyTorch, it is not written, and the exit code is 1; in
    int8 it may differ a little, and how much is said.
    """
    size = parse_image_size(image_size)
    format_of(output, file_format)
    _check_int8(precision, calibrate, {"--max-drop": max_drop, "--class-map": class_map})
    check_file("--output", output)
    if model_argument is not None and model_name is not None:
        raise InputError(f"{model_argument} and --model {model_name} both name a model: give one")
    model_name = model_name if model_argument is None else model_argument
    check_one_model(model_name, released)
    if dense:
        refuse_budget_of_dense(keep_ratio, tile)
    if is_exported(model_name):
        raise InputError(f"{model_name} is an exported file already: give the model it came from")
    model, size = load_at_budget(
        chosen_model(model_name, released),
        checkpoint=checkpoint,
        keep_ratio=keep_ratio,
        tile=tile,
        image_size=size,
        pretrained=not no_pretrained,
    )
    console = Console()
    try:
        made = export_model(
            model,
            output,
            format=file_format,
            precision=precision,
            image_size=size,
            batch=batch,
            crop_pct=crop_pct,
            dense=dense,
            validation=validation,
            class_map=class_map,
            calibrate=calibrate,
            calibration_images=calibration_images,
            max_drop=max_drop,
            **({} if opset is None else {"opset": opset}),
        )
    except ExportMismatchError as error:
        typer.echo(f"dynamicvit: {output} is not written: {error}", err=True)
        raise typer.Exit(1) from None
    _tell(console, made)
    say(console, f"saved {output}: dynamicvit eval DATA --model {output}")


def _check_int8(precision: str, calibrate: str | None, others: dict[str, object]) -> None:
    """Refuse int8 that is not calibrated, and what goes with int8 without it."""
    if precision == "int8":
        if calibrate is None:
            raise InputError(
                "--precision int8 needs --calibrate IMAGES, of the kind that the file will see"
            )
        return
    for option, value in {"--calibrate": calibrate, **others}.items():
        if value is not None:
            raise InputError(f"{option} {value} goes with --precision int8")


def _tell(console: Console, made: Exported) -> None:
    """How the file compares with the model."""
    if made.check is not None:
        error = made.check.logit_error
        say(console, f"checked on {made.compared_on}: as in PyTorch, logits to {error:.1g}")
        if made.description.stages:
            ties = f", of {made.check.ties} after a tie" if made.check.ties else ""
            say(console, f"the same patches kept{ties}")
    found = made.agreement
    if found is None:
        return
    say(console, f"int8, calibrated on {made.calibrated_on}")
    say(console, f"compared on {made.compared_on}, {found.images} images:")
    say(console, f"  {found.answers:.1%} of the answers are as in PyTorch")
    if found.kept:
        kept = ", ".join(f"{share:.1%}" for share in found.kept)
        say(console, f"  {kept} of the patches kept")
    if found.top1 is not None and found.model_top1 is not None:
        say(console, f"  top-1 {found.top1:.2%}, in PyTorch {found.model_top1:.2%}")
    say(console, f"layers in float: {made.in_words}")
