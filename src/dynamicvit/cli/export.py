"""`dynamicvit export`: a model as a checked file for ONNX Runtime, OpenVINO or PyTorch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dynamicvit.cli.console import check_file, print_error, say, say_left_out
from dynamicvit.cli.inference import load_at_budget, refuse_with_dense, say_if_untrained
from dynamicvit.cli.options import (
    AddOn,
    Checkpoint,
    ClassMapOption,
    ClassNames,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Method,
    Model,
    ModelArgument,
    NoPretrained,
    Policy,
    Released,
    ScheduleOption,
    Tile,
    check_one_model,
    chosen_model,
    one_name,
    parse_image_size,
)
from dynamicvit.data import open_data, read_class_names, set_class_names
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
from dynamicvit.utils.words import inputs_called, percent

_FILE, _INT8 = "File", "Int8"


def export(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .onnx, .xml (OpenVINO) or .pt2.", readable=False
        ),
    ],
    model_argument: ModelArgument = None,
    model_name: Model = None,
    released: Released = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the backbone alone: every patch is kept.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "int8"], typer.Option(help="int8 for .onnx and .xml; needs --calibrate.")
    ] = "fp32",
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images to calibrate int8 on, labeled or not."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to check the file on, labeled or with masks for int8; by default two "
            "photographs, or other images of --calibrate.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    no_pretrained: NoPretrained = False,
    tile: Tile = None,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    class_map: ClassMapOption = None,
    class_names: ClassNames = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"{', '.join(FORMATS)}; by default that of the suffix.",
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
        int | None, typer.Option(help="For ONNX, 18 or later.", rich_help_panel=_FILE)
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(
            help=f"Images of --calibrate to calibrate on; by default {CALIBRATION_IMAGES}.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of top-1 or mIoU that int8 may cost; as many layers as needed stay in "
            "float. Without --validation, changed answers count.",
            rich_help_panel=_INT8,
        ),
    ] = None,
) -> None:
    """Write MODEL as a file for other runtimes, and check it against PyTorch.

    The file gives logits, of a segmentation model a map of them, and the patches kept at each
    stage; labels and preprocessing are stored in it. A file that differs from PyTorch is not
    written, and the exit code is 1; in int8 the agreement is printed.

    Example: dynamicvit export runs/mine -o model.onnx
    """
    size = parse_image_size(image_size)
    names = None if class_names is None else read_class_names(class_names)
    kind = format_of(output, file_format)
    of_int8 = {
        "--max-drop": max_drop,
        "--calibration-images": calibration_images,
        "--class-map": class_map,
    }
    _check_int8(precision, calibrate, of_int8)
    check_file("--output", output)
    kind.check_output(output, "--output")
    model_name = one_name(model_argument, model_name)
    check_one_model(model_name, released)
    if dense:
        refuse_with_dense(
            keep_ratio=keep_ratio, schedule=schedule, policy=policy, method=method, tile=tile
        )
    if is_exported(model_name):
        raise InputError(f"{model_name} is an exported file: give the model it was made from")
    model, size = load_at_budget(
        chosen_model(model_name, released),
        checkpoint=checkpoint,
        addon=addon,
        keep_ratio=keep_ratio,
        schedule=schedule,
        policy=policy,
        method=method,
        tile=tile,
        image_size=size,
        pretrained=not no_pretrained,
    )
    model.warns_untrained = False  # say_if_untrained does
    if not dense:
        say_if_untrained(model_name or f"{released}", model)
    if names is not None:
        set_class_names(model, names)
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
        print_error(f"{output} is not written: {error}")
        raise typer.Exit(1) from None
    console = Console()
    for source in dict.fromkeys(name for name in (calibrate, validation) if name is not None):
        if Path(source).exists():
            say_left_out(console, open_data(source, labeled=False).left_out)
    for line in [*_lines(made), f"saved {output}: dynamicvit eval DATA --model {output}"]:
        say(console, line)


def _check_int8(precision: str, calibrate: str | None, others: dict[str, object]) -> None:
    """Check that int8 is calibrated, and that its options come with int8.

    Raises:
        InputError: naming the option.
    """
    if precision == "int8":
        if calibrate is None:
            raise InputError(
                "--precision int8 needs --calibrate, images of the kind that the file will see"
            )
        return
    for option, value in {"--calibrate": calibrate, **others}.items():
        if value is not None:
            raise InputError(f"{option} {value} goes with --precision int8")


def _lines(made: Exported) -> list[str]:
    """How the file compares with the model."""
    if made.check is not None:
        error = made.check.logit_error
        lines = [f"checked on {made.compared_on}: logits equal PyTorch's to {error:.1g}"]
        if made.description.stages:
            ties = f", in {made.check.ties} images after a tie" if made.check.ties else ""
            lines.append(f"the same patches kept{ties}")
        return lines
    found = made.agreement
    assert found is not None
    what = inputs_called(made.description.frames)
    answers = "pixels have the class that is" if made.description.map_size else "answers are"
    lines = [
        f"int8, calibrated on {made.calibrated_on}",
        f"compared on {made.compared_on}, {found.images} {what}:",
        f"  {percent(found.answers)} of the {answers} PyTorch's",
    ]
    if found.kept:
        shares = " / ".join(f"{100 * share:.1f}" for share in found.kept)
        lines.append(f"  the same patches kept as in PyTorch: {shares} %")
    if found.scores is not None:
        name, score, models = found.scores
        lines.append(f"  {name} {percent(score, 2)}, in PyTorch {percent(models, 2)}")
    return [*lines, f"layers in float: {made.in_words}"]
