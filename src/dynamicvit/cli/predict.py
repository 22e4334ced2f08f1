"""`dynamicvit predict`: classes and kept shares of images as a table, or masks in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from dynamicvit.cli.console import (
    StoppedError,
    check_file,
    check_folder,
    main_console,
    progress_bar,
    say,
    say_left_out,
)
from dynamicvit.cli.inference import load_for_inference, say_if_untrained
from dynamicvit.cli.options import (
    COST,
    AddOn,
    Checkpoint,
    CropPct,
    ImageSizeOption,
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
from dynamicvit.evaluation.answers import TABLE
from dynamicvit.evaluation.predictions import open_images, predict
from dynamicvit.evaluation.tables import STARTS, SUFFIXES, check_suffix
from dynamicvit.utils.distributed import launched_precision, launched_processes
from dynamicvit.utils.precision import autocast_dtype
from dynamicvit.utils.signals import stop_requests


def predict_command(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Image files, folders, .tar files, wds/PLACE, hfds/PLACE or torch/NAME/FOLDER; "
            "for a model of clips videos.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Table to write: .csv, .jsonl or .parquet; of a segmentation model a folder.",
            readable=False,
        ),
    ],
    model_name: ModelOrFile = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    tile: Tile = None,
    top: Annotated[int, typer.Option(help="Classes of each image.")] = 5,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images in a batch, by default 32; of clips 8.", rich_help_panel=COST),
    ] = None,
    stride: Stride = None,
    views: ViewsOption = None,
    precision: Precision = "fp32",
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    no_pretrained: NoPretrained = False,
    strict: Strict = False,
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Write a row for each of IMAGES, in order: its classes, their probabilities, kept shares.

    A segmentation model writes a mask for each into a folder: a PNG of class indices.
    MODEL may be an exported file. A run that was stopped resumes when the same command is given
    again. An unreadable image has a row that says why. Several processes, started by
    torch.distributed.run or accelerate launch, share the images of each batch.

    Example: dynamicvit predict photos --model runs/mine -o photos.csv
    """
    check_one_model(model_name, released)
    size = parse_image_size(image_size)
    is_table = output.suffix.lower() in SUFFIXES or (output.suffix and not output.is_dir())
    table = output if is_table else output / TABLE
    check_suffix(table)
    if is_table:
        check_file("--output", output, STARTS.get(output.suffix.lower(), b""))
    else:
        check_folder(output)
    use_threads(threads)
    processes = launched_processes("cuda" if torch.cuda.is_available() else "cpu")
    dtype = launched_precision(autocast_dtype(precision), processes.device)
    averaged = None if views is None else parse_views(views)
    data = open_images(images, strict, averaged)
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
    if processes.is_main:
        say_if_untrained(model_name, model)
    model.to(processes.device)
    processes.equalize(model)  # untrained weights differ
    count, done, what = sum(map(len, data)), 0, f"{data[0].noun}s"
    with stop_requests() as request, progress_bar(main_console(processes, stderr=True)) as bar:
        task = bar.add_task("predicting", total=count, note="")

        def advance(images: int) -> None:
            nonlocal done
            done += images
            bar.update(task, completed=done)
            if signum := max(processes.gather(request.signum)):
                raise StoppedError(
                    f"stopped after {done} of {count} {what}; the same command resumes", signum
                )

        found = predict(
            model,
            data,
            output,
            top=top,
            image_size=size,
            crop_pct=crop_pct,
            batch_size=batch_size,
            stride=stride,
            views=averaged,
            workers=workers,
            amp_dtype=dtype,
            progress=advance,
            processes=processes,
        )
    notes = [f"{found.resumed} by an earlier run"] if found.resumed else []
    notes += [f"{len(found.unreadable)} unreadable"] if found.unreadable else []
    ending = f" ({', '.join(notes)})" if notes else ""
    console = main_console(processes)
    say(console, f"{found.images} {what}{ending} -> {output}")
    say_left_out(console, [name for part in data for name in part.left_out])
    processes.close()
