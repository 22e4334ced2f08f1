"""`dynamicvit eval`: accuracy of a model on images or clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from timm.data import resolve_model_data_config

from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.checkpoints.loading import set_image_size
from dynamicvit.cli.console import (
    check_file,
    check_json,
    main_console,
    percents,
    progress_bar,
    say,
    say_left_out,
    write_json,
)
from dynamicvit.cli.evaluated import evaluated_for, for_model
from dynamicvit.cli.inference import load_for_inference, refuse_with_dense, say_if_untrained
from dynamicvit.cli.options import (
    COST,
    IMAGES,
    WEIGHTS,
    AddOn,
    Checkpoint,
    ClassMapOption,
    CropPct,
    Data,
    ImageSizeOption,
    JsonFile,
    KeepRatio,
    Method,
    ModelOrFile,
    NoPretrained,
    Policy,
    Precision,
    Released,
    ScheduleOption,
    Strict,
    Stride,
    Threads,
    Tile,
    ViewsOption,
    Workers,
    check_one_model,
    chosen_model,
    parse_image_size,
    parse_views,
    use_threads,
)
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.registry import fate
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.evaluation import EvaluationResult, SegmentationResult
from dynamicvit.evaluation.accuracy import dense_self
from dynamicvit.evaluation.kept import SUFFIXES as KEPT_SUFFIXES
from dynamicvit.evaluation.tables import check_suffix
from dynamicvit.runtimes import ExportedModel
from dynamicvit.utils.distributed import launched_precision, launched_processes
from dynamicvit.utils.precision import autocast_dtype, precision_name

#: Skipped images that are listed; all are in the JSON, and in the warnings.
_LISTED = 10


def eval_command(
    data: Data,
    model_name: ModelOrFile = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    tile: Tile = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Evaluate the backbone alone: every patch is kept.")
    ] = False,
    compare_dense: Annotated[
        bool, typer.Option("--compare-dense", help="Also count agreement with the dense backbone.")
    ] = False,
    dense_checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Dense weights to compare with: those the model was trained from.",
            readable=False,
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images in a batch, by default 32; of clips 8.", rich_help_panel=COST),
    ] = None,
    stride: Stride = None,
    views: ViewsOption = None,
    precision: Precision = "fp32",
    class_map: ClassMapOption = None,
    unlabeled: Annotated[
        bool,
        typer.Option(
            "--unlabeled",
            help="Ignore class names: agreement only.",
            rich_help_panel=IMAGES,
        ),
    ] = False,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    no_pretrained: NoPretrained = False,
    strict: Strict = False,
    workers: Workers = 1,
    threads: Threads = None,
    save_kept: Annotated[
        Path | None,
        typer.Option(help="Write each image's kept patches: .npz or .parquet.", readable=False),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Evaluate MODEL on the images of DATA: top-1, top-5, agreement with the dense model.

    Of a model of clips likewise, over the views of each video.
    Of a segmentation model mIoU and the IoU of each class, single-scale, by sliding windows.
    Each readable image counts once; unreadable ones are listed. Several processes, started by
    torch.distributed.run or accelerate launch, share the images of each batch.

    Example: dynamicvit eval validation --model runs/mine --compare-dense
    """
    check_one_model(model_name, released)
    if dense:
        refuse_with_dense(
            keep_ratio=keep_ratio, schedule=schedule, policy=policy, method=method, tile=tile
        )
    if save_kept is not None:
        check_suffix(save_kept, KEPT_SUFFIXES)
        check_file("--save-kept", save_kept)
        if dense:
            raise InputError(f"--save-kept {save_kept}: --dense keeps every patch")
    size = parse_image_size(image_size)
    check_json(json_file)
    use_threads(threads)
    processes = launched_processes("cuda" if torch.cuda.is_available() else "cpu")
    dtype = launched_precision(autocast_dtype(precision), processes.device)
    console = main_console(processes, stderr=json_file == "-")
    compare_dense = compare_dense or dense_checkpoint is not None
    options = {
        "class_map": class_map,
        "crop_pct": crop_pct,
        "batch_size": batch_size,
        "save_kept": save_kept,
        "dense_checkpoint": dense_checkpoint,
        "stride": stride,
        "views": None if views is None else parse_views(views),
        "compare_dense": compare_dense,
    }
    found = evaluated_for(data, unlabeled, strict, options)
    if not found.images.labeled and not compare_dense:
        raise InputError(f"{data} has no labels: add --compare-dense, for agreement")
    model_name = chosen_model(model_name, released)
    model, size = load_for_inference(
        model_name,
        checkpoint=checkpoint,
        addon=addon,
        keep_ratio=keep_ratio,
        schedule=schedule,
        policy=policy,
        method=method,
        tile=tile,
        image_size=size,
        precision=precision,
        pretrained=not no_pretrained,
    )
    found = for_model(found, model, model_name, options)
    if model.num_classes < 1:
        raise InputError(f"{model_name} has no classifier to evaluate")
    if dense_checkpoint is None:
        other = compare_dense and dense_self(model)
    else:
        architecture = model.pretrained_cfg.get("architecture")
        if not architecture:
            raise InputError(
                f"--dense-checkpoint {dense_checkpoint}: timm has no name for this backbone; use "
                "--compare-dense"
            )
        other = load_dense(architecture, dense_checkpoint)
        set_image_size(other, size)
    origin = found.fit(model, class_map)
    if origin is not None:
        say(console, f"class map: {origin}")
    images, network = found.images, dense_self(model) if dense else model
    model.to(processes.device)
    processes.equalize(model)  # untrained weights differ
    with progress_bar(main_console(processes, stderr=True)) as bar:
        task = bar.add_task("evaluating", total=len(images), note="")

        def advance(done: int) -> None:
            bar.advance(task, done * processes.count)  # the others' progress is about the same
            speed = bar.tasks[0].speed
            bar.update(task, note="" if speed is None else f"{speed:.1f} images/s")

        given = {name: options[name] for name in found.takes if options[name] is not None}
        result = found.evaluate(
            network,
            dense=other or None,
            image_size=size,
            workers=workers,
            amp_dtype=dtype,
            progress=advance,
            processes=processes,
            **given,
        )
    settings: dict[str, Any] = {
        "model": model_name,
        "checkpoint": checkpoint and str(checkpoint),
        "addon": addon and str(addon),
        "dense": str(dense_checkpoint or "the same weights, every patch kept") if other else None,
        "dense_checkpoint": dense_checkpoint and str(dense_checkpoint),
        "data": str(data),
        "class_map": origin,
        "stages": () if dense else model.schedule.stages,
        "keep_ratios": () if dense else model.schedule.keep_ratios,
        "method": None if dense else _method(model),
        "policy": None if dense else model.schedule.policy,
        "image_size": size,
        "crop_pct": crop_pct or resolve_model_data_config(model)["crop_pct"],
        "precision": precision_name(dtype),
        "batch_size": batch_size or found.batch_size,
        "stride": stride,
        "device": processes.device.type,
        "processes": processes.count,
        "torch": torch.__version__,
    }
    if processes.is_main and not dense:
        say_if_untrained(model_name, model)
    rows = [*result.rows(), *found.rows(network, size)]
    _print(console, settings, None if dense else model.schedule, result, rows, f"{images.noun}s")
    say_left_out(console, images.left_out)
    if processes.is_main:
        cost = found.cost(network, size)
        rate = {"images_per_second": result.images_per_second}
        write_json(
            json_file,
            {**settings, **asdict(result), **rate, **cost, "left_out": list(images.left_out)},
        )
    processes.close()


def _method(model: DynamicViT | ExportedModel) -> str | None:
    return model.method.name if isinstance(model, DynamicViT) else model.description.method


def _print(
    console: Console,
    settings: dict[str, Any],
    schedule: Schedule | None,
    result: EvaluationResult | SegmentationResult,
    rows: Iterable[tuple[str, str]],
    inputs: str,
) -> None:
    kept = "dense"
    if schedule is not None and schedule.stages:
        dropped = fate(settings["method"], schedule.policy)
        kept = f"keeps {percents(schedule.keep_ratios)} of the patches, the others {dropped}"
    say(console, f"{settings['model']}, {kept}, {settings['precision']}")
    if settings["dense"] is not None:
        say(console, f"dense: {settings['dense']}")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    table.add_row(inputs, str(result.images))
    table.add_row(f"{inputs}/s, reading included", f"{result.images_per_second:.1f}")
    if result.skipped:
        table.add_row("skipped, unreadable", str(len(result.skipped)))
    console.print(table, highlight=False)
    for path in result.skipped[:_LISTED]:
        say(console, f"  {path}")
    if len(result.skipped) > _LISTED:
        say(console, f"  and {len(result.skipped) - _LISTED} more")
