"""`dynamicvit bench`: speed of a model, dense and pruned, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from dynamicvit.checkpoints.released import is_release
from dynamicvit.cli.bench_tables import print_heading, print_machine, print_memory, print_times
from dynamicvit.cli.console import (
    check_file,
    check_json,
    print_error,
    progress_bar,
    say,
    write_json,
)
from dynamicvit.cli.inference import load_at_budget, refuse_fixed
from dynamicvit.cli.options import (
    COST,
    AddOn,
    Checkpoint,
    Frames,
    ImageSizeOption,
    JsonFile,
    KeepRatio,
    Method,
    ModelOrFile,
    Policy,
    Released,
    ScheduleOption,
    Threads,
    Tile,
    Tubelet,
    chosen_model,
    parse_image_size,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench import BATCH_SIZES, bench, bench_files, settings_of
from dynamicvit.runtimes import PRECISIONS, RUNTIMES, ExportMismatchError, is_exported

_PLOTS = (".png", ".pdf", ".svg")


def bench_command(
    model_name: ModelOrFile = None,
    released: Released = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    macs: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="In place of a keep ratio: a limit such as 3.0G or 60% (of dense).",
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=f"{', '.join(RUNTIMES)}; may be repeated; by default eager."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help=f"{', '.join(PRECISIONS)}; may be repeated; by default fp32, bf16."
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(help="Images in a batch; may be repeated; by default 1, 8, 32."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another exported file, to compare the file of --model with.", readable=False
        ),
    ] = None,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help=f"Draw the table: {', '.join(_PLOTS)}.", readable=False)
    ] = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    tile: Tile = None,
    image_size: ImageSizeOption = None,
    frames: Frames = None,
    tubelet: Tubelet = None,
    seconds: Annotated[
        float,
        typer.Option(help="Seconds to measure each row; at least 5 rounds.", rich_help_panel=COST),
    ] = 10.0,
    samples: Annotated[
        int | None,
        typer.Option(help="Rounds, in place of --seconds; p99 needs 100.", rich_help_panel=COST),
    ] = None,
    threads: Threads = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory",
            help="Also measure peak memory, at the largest batch.",
            rich_help_panel=COST,
        ),
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images to calibrate int8 on; without them it is for speed only.",
            rich_help_panel=COST,
        ),
    ] = None,
) -> None:
    """Time a model dense and pruned, in turn, and print the speed-up with its spread.

    A model given by timm's name has random weights, unless there is a --checkpoint or
    --addon: that changes neither times nor MACs.

    Example: dynamicvit bench --model runs/mine --runtime eager --runtime openvino
    """
    size = parse_image_size(image_size)
    check_json(json_file)
    if plot is not None:
        if plot.suffix.lower() not in _PLOTS:
            raise InputError(f"--plot {plot}: a plot ends in {', '.join(_PLOTS)}")
        check_file("--plot", plot)
    console = Console(stderr=json_file == "-")
    name = chosen_model(model_name, released)
    plan: dict[str, Any] = {"threads": threads, "seconds": seconds, "samples": samples}
    weights = "given"
    bar = progress_bar()
    task = bar.add_task("preparing", total=1, note="")

    def progress(size: int, work: str, share: float) -> None:
        bar.update(task, description=f"batch {size}, {work}", completed=share)

    if is_exported(name):
        fixed = {
            "--checkpoint": checkpoint,
            "--addon": addon,
            "--keep-ratio": keep_ratio,
            "--schedule": schedule,
            "--tile": tile,
            "--macs": macs,
            "--image-size": image_size,
            "--frames": frames,
            "--tubelet": tubelet,
            "--runtime": runtime,
            "--calibrate": calibrate,
            "--memory": memory or None,
        }
        refuse_fixed(name, fixed)
        plan |= {"batch_sizes": batch_size, "precisions": precision or ["fp32"]}
        with bar:
            report = bench_files(name, against, progress=progress, **plan)
    else:
        if against is not None:
            raise InputError(f"--against {against} compares exported files; {name} is not one")
        model, size = load_at_budget(
            name,
            checkpoint=checkpoint,
            addon=addon,
            keep_ratio=keep_ratio,
            schedule=schedule,
            policy=policy,
            method=method,
            tile=tile,
            macs=macs,
            image_size=size,
            frames=frames,
            tubelet=tubelet,
            pretrained=addon is not None,  # it has to be that of its own weights
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device)
        saved = "/" in name or Path(name).exists() or is_release(name)
        if checkpoint is None and addon is None and not saved:
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
            with bar:
                report = bench(model, progress=progress, **plan)
        except ExportMismatchError as error:
            print_error(f"{name} can't be timed as a file: {error}")
            raise typer.Exit(1) from None
    print_heading(console, report, name, weights)
    print_times(console, report.rows)
    if report.memory:
        print_memory(console, report.memory, next(iter(report.schedule.stages), None))
    print_machine(console, report)
    if plot is not None:
        from dynamicvit.plots import style
        from dynamicvit.plots.speed import plot_speed

        title = name if against is None else f"{name} against {against}"
        style.save(plot_speed(report.rows, f"{title}, {report.processor}"), plot)
        say(console, f"saved {plot}")
    write_json(json_file, {"model": name, "weights": weights, **report.as_numbers()})
