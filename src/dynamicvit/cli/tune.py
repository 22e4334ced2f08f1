"""`dynamicvit tune`: a schedule for a target, found on images without labels."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.cli.console import (
    StoppedError,
    check_folder,
    check_json,
    print_error,
    progress_bar,
    say,
    write_json,
)
from dynamicvit.cli.options import (
    COST,
    IMAGES,
    Checkpoint,
    CropPct,
    ImageSizeOption,
    JsonFile,
    Method,
    Model,
    ModelArgument,
    NoPretrained,
    Policy,
    Released,
    Threads,
    check_one_model,
    chosen_model,
    one_name,
    parse_image_size,
    use_threads,
)
from dynamicvit.core.networks import bound_of
from dynamicvit.errors import InputError
from dynamicvit.runtimes import PRECISIONS, RUNTIMES, ExportMismatchError, is_exported
from dynamicvit.tuning import Target, Tuned, tune
from dynamicvit.tuning.tuner import PICTURE, RECORD, SCHEDULE, trained_or_lookahead
from dynamicvit.utils.words import inputs_called, percent

_TARGET = "Target: give one"


def tune_command(
    model_argument: ModelArgument = None,
    model_name: Model = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Images as the model will see; labels are ignored."
        ),
    ] = None,
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="60% of the dense MACs, or 0.8G an image.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="20ms a batch.", rich_help_panel=_TARGET),
    ] = None,
    throughput: Annotated[
        float | None, typer.Option(help="Images a second.", rich_help_panel=_TARGET)
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Points of answers that may differ from the dense model's.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help=f"Folder for {SCHEDULE}, {PICTURE} and {RECORD}, which resumes.",
            readable=False,
        ),
    ] = Path("tuned"),
    released: Released = None,
    checkpoint: Checkpoint = None,
    no_pretrained: NoPretrained = False,
    method: Method = None,
    policy: Policy = None,
    images: Annotated[
        int, typer.Option(help="Images drawn from DATA.", rich_help_panel=IMAGES)
    ] = 400,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    evaluations: Annotated[
        int, typer.Option(help="Schedules to run at most.", rich_help_panel=COST)
    ] = 80,
    seed: Annotated[int, typer.Option(help="Of the draw.", rich_help_panel=IMAGES)] = 0,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help=f"Of the times: {', '.join(RUNTIMES)}.")
    ] = "eager",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help=f"Of the times: {', '.join(PRECISIONS)}.")
    ] = "fp32",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images in a timed batch; by default 1, for --throughput 32."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Seconds of each timing.", rich_help_panel=COST)
    ] = 10.0,
    threads: Threads = None,
    json_file: JsonFile = None,
) -> None:
    """Find where and how much MODEL should drop for a target, on images without labels.

    Half of the images are searched with; the other half decides, and the method's own schedule
    stays if nothing is better there. A dense MODEL merges by look-ahead, unless --method says
    otherwise; of a trained one the ratios are tuned. What is found is run and compared with what
    was predicted.

    Example: dynamicvit tune deit_small_patch16_224 --data photos --latency 20ms -o tuned
    """
    Target.of(macs, latency, throughput, max_drop)
    size = parse_image_size(image_size)
    check_json(json_file)
    if data is None:
        raise InputError("Missing option '--data'.")
    check_folder(output, names=[SCHEDULE, PICTURE, RECORD])
    name = one_name(model_argument, model_name)
    check_one_model(name, released)
    if name is not None and is_exported(name):
        raise InputError(f"{name} is an exported file: give the model it was made from")
    use_threads(threads)
    model = load(
        chosen_model(name, released),
        checkpoint=checkpoint,
        policy=policy,
        method=method,
        pretrained=not no_pretrained,
    )
    if method is None:
        model = trained_or_lookahead(model)
    size = set_image_size(model, size)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=json_file == "-")
    try:
        with progress_bar() as bar:
            task = bar.add_task("", total=1, note="", visible=False)
            found = tune(
                model,
                data,
                macs=macs,
                latency=latency,
                throughput=throughput,
                max_drop=max_drop,
                output=output,
                num_images=images,
                evaluations=evaluations,
                seed=seed,
                runtime=runtime,
                precision=precision,
                batch_size=batch_size,
                threads=threads,
                seconds=seconds,
                image_size=size,
                crop_pct=crop_pct,
                tell=lambda line: say(console, line),
                progress=lambda work, share: bar.update(
                    task, description=work, completed=share, visible=share < 1
                ),
            )
    except KeyboardInterrupt as stop:
        where = f"interrupted; what was done is in {output}, the same command resumes"
        raise StoppedError(where, getattr(stop, "signum", signal.SIGINT)) from None
    except ExportMismatchError as error:
        print_error(f"{name} can't be timed as a file: {error}")
        raise typer.Exit(1) from None
    bound = bound_of(model)
    assert bound is not None  # it was tuned
    _print(console, found, inputs_called(bound.frames))
    say(console, f"saved {output / SCHEDULE}, {output / PICTURE}")
    say(console, f"use it: dynamicvit eval DATA --model MODEL --schedule {output / SCHEDULE}")
    write_json(json_file, {"model": name or released, **found.as_numbers()})


def _print(console: Console, found: Tuned, what: str) -> None:
    table = Table("schedule", box=None, pad_edge=False)
    for title in ("of dense", "KL", "agreement", "kept"):
        table.add_column(title, justify="left" if title == "kept" else "right")
    for each in found.compared:
        table.add_row(
            f"{each.name}{', chosen' if each.name == found.best.name else ''}",
            percent(each.cost / found.dense_cost),
            f"{each.verdict.kl:.4f}",
            percent(each.verdict.agreement),
            " ".join(map(str, each.kept)),
        )
    console.print(table, highlight=False)
    searched, decided = found.images
    ran, remembered = found.ran
    earlier = f", {remembered} by earlier runs" if remembered else ""
    say(
        console,
        f"on {decided} {what} that had no part in the search, which had {searched} and ran "
        f"{ran} schedules{earlier}",
    )
    for line in found.in_words():
        say(console, line)
