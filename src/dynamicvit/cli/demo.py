"""`dynamicvit demo`: token dropping in minutes, without data or downloads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from dynamicvit.cli.console import LineNowAndThen, check_folder, progress_bar, say
from dynamicvit.cli.options import Output, Threads, use_threads
from dynamicvit.core.model import DynamicViT
from dynamicvit.demo import experiment
from dynamicvit.demo.experiment import Row, Size
from dynamicvit.plots import save
from dynamicvit.training import Progress
from dynamicvit.utils.words import percent

_PICTURE = "demo.png"


def demo(
    output: Output = Path("demo"),
    long: Annotated[
        bool, typer.Option("--long", help="Five times as many scenes, a few minutes more.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of scenes and training.")] = 0,
    threads: Threads = None,
) -> None:
    """Find the digit: drop most patches of a cluttered scene and still read its digit.

    A small vision transformer reads one handwritten digit among pieces of others on a photograph.
    It is sparsified, fine-tuned with itself as the dense teacher, and compared with the dense
    network and with dropping random tokens.

    Example: dynamicvit demo -o demo
    """
    console = Console()
    size = experiment.LONG if long else experiment.SHORT
    check_folder(output, names=[_PICTURE])
    use_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    torch.manual_seed(seed)
    table: list[Row] = [experiment.dense_row(size, seed)]
    say(
        console,
        f"dense: {percent(table[0].top1)} of {size.score_scenes:,} fresh scenes read right, "
        f"{table[0].gmacs:.3f} GMACs a scene",
    )
    for name in ("dynamicvit", "random"):
        model = experiment.sparse_model(name)
        _fine_tune(model, name, size, seed, console)
        table.extend(experiment.rows(model, name, size, seed))
        if name == "dynamicvit":
            [picture] = save(experiment.draw_scenes(model, seed), output / _PICTURE)
    console.print(_table(table, size, seed))
    for shortcoming in experiment.shortcomings(table):
        say(console, f"falls short: {shortcoming}")
    say(console, f"saved {picture}: {experiment.SHOWN} scenes and the patches kept of them")
    say(console, f"took {time.perf_counter() - began:.0f} s")


def _fine_tune(model: DynamicViT, name: str, size: Size, seed: int, console: Console) -> None:
    title = f"fine-tuning with {name}"
    lines = LineNowAndThen(console, seconds=10)
    with progress_bar(console, transient=False) as bar:
        task = bar.add_task(title, total=None, note="")

        def show(progress: Progress) -> None:
            done, steps = progress.step + 1, progress.steps
            speed, loss = progress.images_per_second, progress.losses["total"]
            note = f"{speed:.0f} scenes/s loss {loss:.3f}"
            bar.update(task, total=steps, completed=done, note=note)
            lines.say(f"{title}: step {done} of {steps}, {note}")

        experiment.fine_tune(model, size, seed, show)


def _table(rows: list[Row], size: Size, seed: int) -> Table:
    table = Table(
        title=f"{size.score_scenes:,} fresh scenes, seed {seed}",
        caption="ρ: share of the patches that each of three stages keeps of those before it\n"
        f"times as fast: as dense, at batch {experiment.BATCH_SIZE}\n"
        "digit, rest: share of the digit's patches, and of all others, kept to the end",
    )
    for heading in ("", "ρ", "top-1", "GMACs", "times as fast", "digit", "rest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        table.add_row(
            row.name,
            "-" if row.keep_ratio is None else f"{row.keep_ratio}",
            percent(row.top1),
            f"{row.gmacs:.3f}",
            "1" if row.speedup is None else f"{row.speedup:.2f}",
            percent(row.digit_kept, 0),
            percent(row.background_kept, 0),
        )
    return table
