"""`dynamicvit bench`: how much faster a model is when it drops patches, on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console

from dynamicvit.budgets import Budget, keep_ratio_for, parse_budget, tiled_keep_ratios
from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.checkpoints.released import is_release
from dynamicvit.cli import app
from dynamicvit.cli.bench_report import Report, as_numbers, title_of
from dynamicvit.cli.bench_tables import (
    print_heading,
    print_machine,
    print_memory,
    print_times,
)
from dynamicvit.cli.console import check_file, check_json, progress_bar, say, write_json
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
from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench import (
    BATCH_SIZES,
    MEASURED,
    PRECISIONS,
    RUNTIMES,
    BenchRow,
    MemoryRow,
    Progress,
    Setting,
    available_cores,
    bench,
    bench_files,
    peak_memory,
    processor_name,
    settings_of,
    versions,
)
from dynamicvit.evaluation.bench.plot import plot_rows
from dynamicvit.export import ExportMismatchError, format_of, is_exported, load_exported


@app.command("bench")
def bench_command(
    model_name: Model = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    keep_ratio: KeepRatio = None,
    tile: Tile = None,
    macs: Annotated[
        str | None,
        typer.Option(help="Instead of a keep ratio: at most so much, as 3.0G or 60% (of dense)."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Of an exported file as --model: another one to compare with.", readable=False
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images in a batch; may be repeated; else 1, 8, 32.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(RUNTIMES)}; may be repeated; else eager."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(PRECISIONS)}; may be repeated; else fp32 and bf16."),
    ] = None,
    threads: Threads = None,
    image_size: ImageSizeOption = None,
    seconds: Annotated[float, typer.Option(help="Time for each row, at least 5 rounds.")] = 10.0,
    samples: Annotated[
        int | None, typer.Option(help="Instead of a time: rounds of runs, 100 for a p99.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure peak memory, at the largest batch.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Images for int8, of any source; by default it is for speed only."),
    ] = None,
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the table: .png, .pdf or .svg.", readable=False)
    ] = None,
) -> None:
    """Time a model dense and pruned, in turn, and print the speed-up with its spread.

    Without --released nothing is downloaded: where neither a saved model nor a checkpoint is given
    the weights are random, which changes neither times nor MACs. An exported file is timed as it
    is.
    """
    budget = _budget(keep_ratio, tile, macs)
    size = parse_image_size(image_size)
    check_json(json_file)
    _check_plot(plot)
    console = Console(stderr=json_file == "-")
    name = chosen_model(model_name, released)
    plan: dict[str, Any] = {
        "threads": available_cores() if threads is None else threads,
        "seconds": seconds,
        "samples": samples,
    }
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
        for option, value in fixed.items():
            if value is not None:
                raise InputError(f"{name} is timed as it is: leave {option} out")
        plan |= {"batch_sizes": batch_size, "precisions": precision or ["fp32"]}
        found = _of_file(name, against, plan)
    else:
        if against is not None:
            raise InputError(f"--against {against} compares exported files, and {name} is none")
        model = load(name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=False)
        size = set_image_size(model, size)
        if budget is not None:
            model.keep_ratio = keep_ratio_for(
                model, macs=budget.macs, fraction=budget.fraction, image_size=size
            )
        if tile is not None:
            model.keep_ratio = tiled_keep_ratios(model, tile, size)
        weights = "random" if checkpoint is None and _by_name(name) else "given"
        plan |= {
            "batch_sizes": batch_size or list(BATCH_SIZES),
            "runtimes": runtime or ["eager"],
            "precisions": precision or ["fp32", "bf16"],
            "calibrate": calibrate,
        }
        found = _of_model(model, name, weights, size, plan, memory)
    print_heading(console, found.report)
    print_times(console, found.rows)
    if found.peaks:
        print_memory(console, found.peaks, next(iter(found.report.stages), None))
    print_machine(console, found.report)
    if plot is not None:
        plot_rows(found.rows, title_of(found.report)).savefig(plot)
        say(console, f"saved {plot}")
    write_json(json_file, as_numbers(*found))


class _Found(NamedTuple):
    """All that is told."""

    report: Report
    rows: list[BenchRow]
    peaks: list[MemoryRow]


# ---------------------------------------------------------------- what is asked for


def _budget(keep_ratio: float | None, tile: int | None, macs: str | None) -> Budget | None:
    if macs is None:
        return None
    if keep_ratio is not None:
        raise InputError(f"--keep-ratio {keep_ratio} and --macs {macs} both set it: give one")
    if tile is not None:
        raise InputError(f"--tile {tile} may round up, and --macs {macs} is a limit: give one")
    return parse_budget(macs)


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


# ---------------------------------------------------------------- measuring


def _of_model(
    model: DynamicViT,
    name: str,
    weights: str,
    size: tuple[int, int],
    plan: dict[str, Any],
    memory: bool,
) -> _Found:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    settings, left_out = settings_of(plan["runtimes"], plan["precisions"], device)
    for line in left_out:
        typer.echo(line, err=True)
    int8 = any(setting.precision == "int8" for setting in settings)
    if plan["calibrate"] is not None and not int8:
        raise InputError(f"--calibrate {plan['calibrate']} goes with --precision int8")
    report = Report(
        model=name,
        weights=weights,
        stages=model.schedule.stages,
        keep_ratios=model.schedule.keep_ratios,
        policy=model.schedule.policy,
        image_size=size,
        dense_macs=schedule_macs(model, DENSE, size),
        pruned_macs=count_macs(model, size),
        threads=plan["threads"],
        device=device,
        processor=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        versions=versions(setting.runtime for setting in settings),
        int8=(plan["calibrate"] or "two photographs, for speed only") if int8 else None,
    )
    try:
        with _progress() as progress:
            rows = bench(model, image_size=size, progress=progress, **plan)
        peaks = list(_peaks(model, size, plan, settings)) if memory else []
    except ExportMismatchError as error:
        typer.echo(f"dynamicvit: {name} can't be timed as a file: {error}", err=True)
        raise typer.Exit(1) from None
    return _Found(report, rows, peaks)


def _of_file(name: str, against: Path | None, plan: dict[str, Any]) -> _Found:
    about = load_exported(name).description
    with _progress() as progress:
        rows = bench_files(name, against, progress=progress, **plan)
    report = Report(
        model=name,
        weights="given",
        stages=about.stages,
        keep_ratios=about.keep_ratios,
        policy=about.policy,
        image_size=about.input_size[1:],
        dense_macs=None,
        pruned_macs=None,
        threads=plan["threads"],
        device="cpu",
        processor=processor_name(),
        versions=versions([format_of(each) for each in (name, against) if each is not None]),
        against=None if against is None else str(against),
    )
    return _Found(report, rows, [])


def _peaks(
    model: DynamicViT, size: tuple[int, int], plan: dict[str, Any], settings: Sequence[Setting]
) -> Iterator[MemoryRow]:
    """Peak memory at the largest batch; in eager mode also with a graph for the backward pass."""
    for runtime, precision in settings:
        if runtime not in MEASURED:
            continue
        for graph in (False, True) if runtime == "eager" else (False,):
            yield peak_memory(
                model,
                max(plan["batch_sizes"]),
                precision=precision,
                image_size=size,
                threads=plan["threads"],
                graph=graph,
                runtime=runtime,
            )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar that starts anew for each batch size."""
    with progress_bar() as bar:
        task = bar.add_task("making ready", total=1, note="")

        def progress(batch_size: int, doing: str, share: float) -> None:
            bar.update(task, description=f"batch {batch_size}, {doing}", completed=share)

        yield progress
