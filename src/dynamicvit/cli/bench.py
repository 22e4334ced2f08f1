"""`dynamicvit bench`: how much faster a model is when it drops patches, on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from dynamicvit.checkpoints.released import is_release
from dynamicvit.cli.bench_tables import print_heading, print_machine, print_memory, print_times
from dynamicvit.cli.console import check_file, check_json, progress_bar, say, write_json
from dynamicvit.cli.inference import load_at_budget, refuse_fixed
from dynamicvit.cli.options import (
    Checkpoint,
    ImageSizeOption,
    JsonFile,
    KeepRatio,
    Model,
    Released,
    Threads,
    Tile,
    chosen_model,
    parse_image_size,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench import BATCH_SIZES, Progress, bench, bench_files, settings_of
from dynamicvit.runtimes import PRECISIONS, RUNTIMES, ExportMismatchError, is_exported

_MEASURING = "Measuring"


def bench_command(
    model_name: Model = None,
    released: Released = None,
    keep_ratio: KeepRatio = None,
    macs: Annotated[
        str | None,
        typer.Option(help="Instead of a keep ratio: at most so much, as 3.0G or 60% (of dense)."),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(RUNTIMES)}; may be repeated; else eager."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(PRECISIONS)}; may be repeated; else fp32 and bf16."),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images in a batch; may be repeated; else 1, 8, 32.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Of an exported file as --model: another one to compare with.", readable=False
        ),
    ] = None,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the table: .png, .pdf or .svg.", readable=False)
    ] = None,
    checkpoint: Checkpoint = None,
    tile: Tile = None,
    image_size: ImageSizeOption = None,
    seconds: Annotated[
        float,
        typer.Option(help="Time for each row, at least 5 rounds.", rich_help_panel=_MEASURING),
    ] = 10.0,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Instead of a time: rounds of runs, 100 for a p99.", rich_help_panel=_MEASURING
        ),
    ] = None,
    threads: Threads = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Also measure peak memory, at the largest batch.",
            rich_help_panel=_MEASURING,
        ),
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Images for int8, of any source; by default it is for speed only.",
            rich_help_panel=_MEASURING,
        ),
    ] = None,
) -> None:
    """Time a model dense and pruned, in turn, and print the speed-up with its spread.

    Without --released nothing is downloaded: where neither a saved model nor a checkpoint is given
    the weights are random, which changes neither times nor MACs. An exported file is timed as it
    is.
    """
    size = parse_image_size(image_size)
    check_json(json_file)
    _check_plot(plot)
    console = Console(stderr=json_file == "-")
    name = chosen_model(model_name, released)
    plan: dict[str, Any] = {"threads": threads, "seconds": seconds, "samples": samples}
    weights = "given"
    if is_exported(name):
        fixed = {
            "--checkpoint": checkpoint,
            "--keep-ratio": keep_ratio,
            "--tile": tile,
            "--macs": macs,
            "--image-size": image_size,
            "--runtime": runtime,
            "--calibrate": calibrate,
            "--memory": memory or None,
        }
        refuse_fixed(name, fixed)
        plan |= {"batch_sizes": batch_size, "precisions": precision or ["fp32"]}
        with _progress() as progress:
            report = bench_files(name, against, progress=progress, **plan)
    else:
        if against is not None:
            raise InputError(f"--against {against} compares exported files, and {name} is none")
        model, size = load_at_budget(
            name,
            checkpoint=checkpoint,
            keep_ratio=keep_ratio,
            tile=tile,
            macs=macs,
            image_size=size,
            pretrained=False,
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device)
        if checkpoint is None and _by_name(name):
            weights = "random"
        plan |= {
            "batch_sizes": batch_size or BATCH_SIZES,
            "runtimes": runtime or ["eager"],
            "precisions": precision or ["fp32", "bf16"],
        }
        for line in settings_of(plan["runtimes"], plan["precisions"], device)[1]:
            typer.echo(line, err=True)
        plan |= {"image_size": size, "calibrate": calibrate, "memory": memory}
        try:
            with _progress() as progress:
                report = bench(model, progress=progress, **plan)
        except ExportMismatchError as error:
            typer.echo(f"dynamicvit: {name} can't be timed as a file: {error}", err=True)
            raise typer.Exit(1) from None
    print_heading(console, report, name, weights)
    print_times(console, report.rows)
    if report.memory:
        print_memory(console, report.memory, next(iter(report.schedule.stages), None))
    print_machine(console, report)
    if plot is not None:
        from dynamicvit.plots import style
        from dynamicvit.plots.speed import plot_speed

        against_it = "" if against is None else f" against {against}"
        style.save(plot_speed(report.rows, f"{name}{against_it}, {report.processor}"), plot)
        say(console, f"saved {plot}")
    write_json(json_file, {"model": name, "weights": weights, **report.as_numbers()})


def _by_name(model_name: str) -> bool:
    """Whether a timm name was given, not a saved model (a folder, a file, or one on the Hub)."""
    known = Path(model_name).exists() or is_release(model_name)
    return "/" not in model_name and not known


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    endings = (".png", ".pdf", ".svg")
    if plot.suffix.lower() not in endings:
        raise InputError(f"--plot {plot}: a plot ends in {', '.join(endings)}")
    check_file("--plot", plot)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar that starts anew for each batch size."""
    with progress_bar() as bar:
        task = bar.add_task("making ready", total=1, note="")

        def progress(batch_size: int, doing: str, share: float) -> None:
            bar.update(task, description=f"batch {batch_size}, {doing}", completed=share)

        yield progress
