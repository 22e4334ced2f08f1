"""`dynamicvit bench`: how much faster a model is when it drops patches, on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynamicvit.benchmark import (
    BenchRow,
    MemoryRow,
    Spread,
    available_cores,
    bench,
    peak_memory,
    processor_name,
)
from dynamicvit.cli import app
from dynamicvit.cli.console import check_json, progress_bar, say, write_json
from dynamicvit.cli.options import (
    Checkpoint,
    ImageSizeOption,
    JsonFile,
    KeepRatio,
    Model,
    Released,
    Threads,
    chosen_model,
    parse_image_size,
)
from dynamicvit.errors import InputError
from dynamicvit.loading import load_model, set_image_size
from dynamicvit.macs import (
    DENSE,
    Budget,
    count_macs,
    keep_ratio_for,
    parse_budget,
    schedule_macs,
)
from dynamicvit.model import DynamicViT
from dynamicvit.released import is_release
from dynamicvit.schedule import Dropped, Schedule


@app.command("bench")
def bench_command(
    model_name: Model = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    keep_ratio: KeepRatio = None,
    macs: Annotated[
        str | None,
        typer.Option(help="Instead of a keep ratio: at most so much, as 3.0G or 60% (of dense)."),
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Images in a batch; may be repeated; else 1, 8, 32.")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="fp32 or bf16 (autocast); may be repeated; else both."),
    ] = None,
    threads: Threads = None,
    image_size: ImageSizeOption = None,
    seconds: Annotated[float, typer.Option(help="Time for each row, at least 5 pairs.")] = 10.0,
    samples: Annotated[
        int | None, typer.Option(help="Instead of a time: pairs of runs for each row.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure peak memory, at the largest batch.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Time a model dense and pruned, in turn, and print the speed-up with its spread.

    Without --released nothing is downloaded: where neither a saved model nor a checkpoint is given
    the weights are random, which changes neither times nor MACs.
    """
    budget = _budget(keep_ratio, macs)
    size = parse_image_size(image_size)
    check_json(json_file)
    console = Console(stderr=json_file == "-")
    model_name = chosen_model(model_name, released)
    model = load_model(model_name, checkpoint=checkpoint, keep_ratio=keep_ratio, pretrained=False)
    size = set_image_size(model, size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if budget is not None:
        model.keep_ratio = keep_ratio_for(
            model, macs=budget.macs, fraction=budget.fraction, image_size=size
        )
    report = Report(
        model=model_name,
        weights="random" if checkpoint is None and _by_name(model_name) else "given",
        stages=model.schedule.stages,
        keep_ratios=model.schedule.keep_ratios,
        dropped=model.schedule.dropped,
        image_size=size,
        dense_macs=schedule_macs(model, DENSE, size),
        pruned_macs=count_macs(model, size),
        torch=torch.__version__,
        threads=available_cores() if threads is None else threads,
        device=device,
        processor=torch.cuda.get_device_name() if device == "cuda" else processor_name(),
    )
    plan: dict[str, Any] = {
        "batch_sizes": batch_size or [1, 8, 32],
        "precisions": precision or ["fp32", "bf16"],
        "threads": report.threads,
        "seconds": seconds,
        "samples": samples,
    }
    rows = _timed(model, size, plan)
    peaks = _measured(model, size, plan) if memory else []
    _print_times(console, report, rows)
    if peaks:
        _print_memory(console, report, peaks)
    _write(json_file, report, rows, peaks)


@dataclass(frozen=True)
class Report:
    """What was measured, and where; a table of it says how much.

    Attributes:
        model: as it was asked for.
        weights: "random" or "given".
        stages: blocks before which tokens are dropped.
        keep_ratios: share of the patches that each stage leaves.
        dropped: what becomes of the others.
        image_size: height and width in pixels.
        dense_macs: of one image.
        pruned_macs: of one image, prediction modules included.
        torch: version.
        threads: CPU threads.
        device: "cuda" where there is one, else "cpu"; memory is the CPU's all the same.
        processor: name of the device.
    """

    model: str
    weights: str
    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    dropped: Dropped
    image_size: tuple[int, int]
    dense_macs: int
    pruned_macs: int
    torch: str
    threads: int
    device: str
    processor: str


# ---------------------------------------------------------------- what is asked for


def _budget(keep_ratio: float | None, macs: str | None) -> Budget | None:
    if macs is None:
        return None
    if keep_ratio is not None:
        raise InputError(f"--keep-ratio {keep_ratio} and --macs {macs} both set it: give one")
    return parse_budget(macs)


def _by_name(model_name: str) -> bool:
    """Whether a timm name was given, not a saved model (a folder, a file, or one on the Hub)."""
    known = Path(model_name).exists() or is_release(model_name)
    return "/" not in model_name and not known


# ---------------------------------------------------------------- measuring


def _timed(model: DynamicViT, size: tuple[int, int], plan: dict[str, Any]) -> list[BenchRow]:
    settings = len(plan["batch_sizes"]) * len(plan["precisions"])
    with progress_bar() as bar:
        task = bar.add_task("warming up", total=settings, note="")
        done = 0

        def progress(batch_size: int, precision: str, share: float) -> None:
            nonlocal done
            name = f"batch {batch_size}, {precision}"
            bar.update(task, description=name, completed=done + share)
            done += share >= 1

        return bench(model, image_size=size, progress=progress, **plan)


def _measured(model: DynamicViT, size: tuple[int, int], plan: dict[str, Any]) -> list[MemoryRow]:
    """Peak memory at the largest batch, without and with a graph for the backward pass."""
    return [
        peak_memory(
            model,
            max(plan["batch_sizes"]),
            precision=plan["precisions"][0],
            image_size=size,
            threads=plan["threads"],
            graph=graph,
        )
        for graph in (False, True)
    ]


# ---------------------------------------------------------------- printing


def _print_times(console: Console, report: Report, rows: list[BenchRow]) -> None:
    ratios = ", ".join(f"{ratio:.3g}" for ratio in report.keep_ratios)
    height, width = report.image_size
    fate = Schedule(report.stages, report.keep_ratios, report.dropped).fate
    say(
        console,
        f"{report.model} ({report.weights} weights), {height}x{width} px, keeps {ratios} of the "
        f"patches from blocks {', '.join(map(str, report.stages))} on, the others {fate}",
    )
    say(
        console,
        f"GMACs {report.dense_macs / 1e9:.3g} dense, {report.pruned_macs / 1e9:.3g} pruned: "
        f"{report.dense_macs / report.pruned_macs:.2f} times fewer",
    )
    table = Table(box=None, pad_edge=False)
    for name in ("batch", "type", "dense\nms", "pruned\nms", "dense\nimg/s", "pruned\nimg/s"):
        table.add_column(name, justify="right", vertical="bottom")
    table.add_column(escape("speed-up [quartiles]"), no_wrap=True)
    table.add_column("pairs", justify="right")
    for row in rows:
        table.add_row(
            str(row.batch_size),
            row.precision,
            f"{row.dense_seconds.median * 1e3:.4g}",
            f"{row.pruned_seconds.median * 1e3:.4g}",
            f"{row.dense_throughput:.4g}",
            f"{row.pruned_throughput:.4g}",
            escape(_speedup(row.speedup, row.conclusive)),
            str(row.pairs),
        )
    console.print(table)
    if not all(row.conclusive for row in rows):
        say(
            console,
            "unclear: the quartiles lie further apart than the speed-up is from 1; measure for "
            "longer (--seconds), or on a quieter machine",
        )
    say(console, f"torch {report.torch}, {report.threads} threads, {report.processor}")


def _speedup(spread: Spread, conclusive: bool) -> str:
    text = f"{spread.median:.2f} [{spread.low:.2f}–{spread.high:.2f}]"
    return text if conclusive else f"{text} unclear"


def _print_memory(console: Console, report: Report, peaks: list[MemoryRow]) -> None:
    first = peaks[0]
    say(console, f"\npeak memory in MiB, batch {first.batch_size}, {first.precision}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("dense\nprocess", "pruned\nprocess", "dense\nbatch", "pruned\nbatch"):
        table.add_column(name, justify="right")
    for row in peaks:
        sizes = (
            row.dense.total,
            row.pruned.total,
            row.dense.inference,
            row.pruned.inference,
        )
        table.add_row(
            "eval(), graph kept" if row.graph else "inference mode",
            *(f"{size / 2**20:.0f}" for size in sizes),
        )
    console.print(table)
    if report.stages and report.stages[0] > 0:
        say(
            console,
            f"inference mode holds one block's activations at a time: the first {report.stages[0]} "
            "blocks, which see every patch, set its peak",
        )


def _write(
    json_file: str | None, report: Report, rows: list[BenchRow], peaks: list[MemoryRow]
) -> None:
    numbers = {
        **asdict(report),
        "rows": [
            {
                **asdict(row),
                "dense_throughput": row.dense_throughput,
                "pruned_throughput": row.pruned_throughput,
                "conclusive": row.conclusive,
            }
            for row in rows
        ],
        "memory": [asdict(row) for row in peaks],
    }
    write_json(json_file, numbers)
