"""`dynamicvit compare`: every way to save the same work, in one table and two plots."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress as Bar
from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.budgets import parse_budget
from dynamicvit.checkpoints.loading import load
from dynamicvit.cli import app
from dynamicvit.cli.compare_tables import costs_table, results_table
from dynamicvit.cli.console import (
    LineNowAndThen,
    StoppedError,
    check_folder,
    progress_bar,
    say,
    write_text,
)
from dynamicvit.cli.options import (
    Checkpoint,
    ClassMapOption,
    CropPct,
    Model,
    NoPretrained,
    Output,
    Precision,
    Strict,
    Threads,
    Unlabeled,
    Workers,
    use_threads,
)
from dynamicvit.costs import DENSE, meta_copy, schedule_macs
from dynamicvit.data import ImageData, class_map_for, split
from dynamicvit.errors import InputError, UnsupportedBackboneError
from dynamicvit.evaluation.bench import available_cores
from dynamicvit.evaluation.compare import Entry, Experiment, Line, Row, lines_of, write_csv
from dynamicvit.evaluation.compare.plots import accuracy_over_macs, accuracy_over_throughput
from dynamicvit.evaluation.compare.timing import BATCH_SIZES
from dynamicvit.methods import Way, build, ways_of
from dynamicvit.plots import style
from dynamicvit.training import Progress
from dynamicvit.utils.signals import terminated_like_interrupted

#: Share of DATA that is evaluated on where nothing else is named.
_HELD_OUT = 0.1

CSV_NAME = "comparison.csv"


@app.command("compare")
def compare(
    data: Annotated[
        str | None,
        typer.Option("--data", help="Images to fine-tune on, named as DATA elsewhere."),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Images to evaluate on; by default a tenth of --data, kept aside."),
    ] = None,
    model_name: Model = None,
    macs: Annotated[
        list[str] | None,
        typer.Option(help="Budgets: 0.64 of dense, 64%, or 0.8G; may be repeated; else 0.64."),
    ] = None,
    ways: Annotated[
        str, typer.Option(help="Names with commas; 'all', 'ablations', or both.")
    ] = "all",
    output: Output = Path("comparison"),
    checkpoint: Checkpoint = None,
    no_pretrained: NoPretrained = False,
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only what means anything without training.")
    ] = False,
    images: Annotated[
        int, typer.Option(help="Images that each way sees in training.", min=1)
    ] = 8000,
    seeds: Annotated[int, typer.Option(help="Runs of each way, with seeds 0, 1, ...", min=1)] = 1,
    recipe: Annotated[str, typer.Option(help="Built-in recipe or YAML file.")] = "small_data",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe."),
    ] = None,
    unlabeled: Unlabeled = None,
    class_map: ClassMapOption = None,
    precision: Precision = "fp32",
    crop_pct: CropPct = None,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Leave throughput out.")] = False,
    seconds: Annotated[
        float, typer.Option(help="Time for each throughput, at least 5 pairs.")
    ] = 10.0,
    strict: Strict = False,
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Compare DynamicViT with other ways to save the same work, on your model and images.

    Every way comes as near to the budget as it can, is fine-tuned by the same recipe on as many
    images, and is timed in turn with the dense network. The folder keeps every row, so the same
    command goes on, and another one (more budgets, ways, seeds) adds to the same table.
    """
    if model_name is None:
        raise InputError("Missing option '--model'.")
    if data is None:
        raise InputError("Missing option '--data'.")
    if seconds <= 0:
        raise InputError(f"seconds are positive, got {seconds}")
    chosen = ways_of(ways)
    check_folder(output)
    use_threads(threads)
    console = Console()
    sources = _sources(data, validation, unlabeled or [], no_train, strict)
    backbone = load(model_name, checkpoint=checkpoint, pretrained=not no_pretrained).backbone.eval()
    fractions = _fractions(backbone, macs or ["0.64"])
    chosen = _possible(backbone, chosen, fractions, ways, console)
    if no_train:
        chosen = [way for way in chosen if way.untrained]
    if not chosen:
        raise InputError(f"--no-train: none of the ways of {ways!r} means anything untrained")
    evaluated, trained = _mapped(sources, backbone, class_map, console)
    experiment = Experiment(
        backbone=backbone,
        evaluated=evaluated,
        trained=trained,
        recipe=recipe,
        overrides=[*(overrides or []), f"images={images}"],
        output=output,
        precision=precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
        workers=workers,
        crop_pct=crop_pct,
        threads=available_cores() if threads is None else threads,
        seconds=seconds,
    )
    entries = experiment.entries(chosen, fractions, seeds)
    for way in chosen if trained else ():
        experiment.check(way)
    try:
        with terminated_like_interrupted():
            _run(experiment, entries, not no_timing, console)
    except KeyboardInterrupt as stop:
        where = f"interrupted; what was done is in {output}, the same command goes on"
        raise StoppedError(where, getattr(stop, "signum", signal.SIGINT)) from None
    lines = lines_of(experiment.known_rows(), experiment.known_timings())
    console.print(results_table(lines, evaluated.labeled), highlight=False)
    if any(line.timings for line in lines):
        console.print(costs_table(lines), highlight=False)
    _write(output, lines, console)


# ---------------------------------------------------------------- what goes in


def _sources(
    data: str, validation: str | None, unlabeled: list[str], no_train: bool, strict: bool
) -> tuple[ImageData, list[ImageData]]:
    """What is evaluated on, and what is trained on."""
    images = ImageData(data, strict=strict)
    more = [ImageData(path, labeled=False, strict=strict) for path in unlabeled]
    if validation is not None:
        evaluated = ImageData(validation, strict=strict)
    elif no_train:
        return images, []
    else:
        images, evaluated = split(images, _HELD_OUT)
    return evaluated, [] if no_train else [images, *more]


def _mapped(
    sources: tuple[ImageData, list[ImageData]],
    backbone: nn.Module,
    class_map: str | None,
    console: Console,
) -> tuple[ImageData, list[ImageData]]:
    """The same sources, their labels in the network's classes."""

    def mapped(images: ImageData) -> ImageData:
        if not images.labeled:
            return images
        chosen = class_map_for(images, num_classes, class_map)
        said.setdefault(f"class map: {chosen.origin}")
        return images.with_class_map(chosen.index)

    said: dict[str, None] = {}
    num_classes = backbone_for(backbone).num_classes
    evaluated, trained = sources
    result = mapped(evaluated), [mapped(source) for source in trained]
    for line in said:
        say(console, line)
    return result


def _fractions(backbone: nn.Module, budgets: Sequence[str]) -> list[float]:
    """Shares of the dense MACs, each once."""
    dense = schedule_macs(backbone, DENSE)
    found = []
    for text in budgets:
        fraction = round(parse_budget(text).of(dense) / dense, 4)
        if not 0 < fraction < 1:
            raise InputError(f"--macs {text} is {fraction:g} of dense: less than dense is needed")
        found.append(fraction)
    return list(dict.fromkeys(found))


def _possible(
    backbone: nn.Module,
    ways: Sequence[Way],
    fractions: Sequence[float],
    asked: str,
    console: Console,
) -> list[Way]:
    """The ways that this backbone can have; one that was named must be among them."""
    shapes, possible = meta_copy(backbone), []
    for way in ways:
        try:
            for fraction in fractions:
                build(way.name, shapes, fraction)
            possible.append(way)
        except UnsupportedBackboneError:
            raise
        except InputError as error:
            if way.name in (part.strip() for part in asked.split(",")):
                raise InputError(f"--ways {way.name}: {error}") from None
            say(console, f"left out {way.name}: {error}")
    return possible


# ---------------------------------------------------------------- running


def _run(
    experiment: Experiment, entries: Sequence[Entry], with_timing: bool, console: Console
) -> None:
    """Every row, then every timing; what has been done before takes no time."""
    timed = dict.fromkeys((entry.way, entry.fraction) for entry in entries if entry.way is not None)
    with progress_bar(console) as bar:
        whole = bar.add_task("rows", total=len(entries) + len(timed) * with_timing, note="")
        for entry in entries:
            bar.update(whole, note=str(entry))
            row = experiment.row(entry, _shown(bar, entry, console))
            say(console, f"{entry}: {_said(row)}")
            bar.advance(whole)
        for way, fraction in timed if with_timing else ():
            bar.update(whole, description="throughput", note=f"{way.name} at {fraction:g}")
            experiment.timing(way, fraction)
            bar.advance(whole)


def _shown(bar: Bar, entry: Entry, console: Console) -> Callable[[Progress], None]:
    """What shows the steps of a row's training: a second bar, or a line now and then."""
    lines = LineNowAndThen(console)
    task = bar.add_task("  training", total=None, note="", visible=False)

    def show(progress: Progress) -> None:
        note = f"{progress.images_per_second:.1f} images/s loss {progress.losses['total']:.3f}"
        done = progress.step + 1
        bar.update(
            task, total=progress.steps, completed=done, note=note, visible=done < progress.steps
        )
        lines.say(f"{entry}: step {done} of {progress.steps}, {note}")

    return show


def _said(row: Row) -> str:
    top1 = "" if row.top1 is None else f"top-1 {100 * row.top1:.2f} %, "
    return f"{top1}agreement {100 * row.agreement:.2f} %, {row.gmacs:.3f} GMACs"


# ---------------------------------------------------------------- what comes out


def _write(output: Path, lines: Sequence[Line], console: Console) -> None:
    write_text(output / CSV_NAME, write_csv(lines))
    plots = {"accuracy_over_gmacs": accuracy_over_macs(lines)}
    if any(line.timings for line in lines):
        for size in BATCH_SIZES:
            plot = accuracy_over_throughput(lines, size)
            plots[f"accuracy_over_throughput_batch_{size}"] = plot
    for name, plot in plots.items():
        style.save(plot, output / name)  # as PNG and PDF
    say(console, f"saved {output / CSV_NAME}, {', '.join(f'{name}.png' for name in plots)}")
