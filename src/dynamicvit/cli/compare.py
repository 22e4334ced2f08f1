"""`dynamicvit compare`: every method at the same MACs, in one table and two plots."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from dynamicvit.checkpoints.loading import load
from dynamicvit.cli import app
from dynamicvit.cli.compare_tables import costs_table, results_table
from dynamicvit.cli.console import LineNowAndThen, StoppedError, check_folder, progress_bar, say
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
    ViewsOption,
    Workers,
    parse_views,
    use_threads,
)
from dynamicvit.cli.recipe_options import Overrides, RecipeIfAny, with_options
from dynamicvit.comparison import ABLATIONS, CSV_NAME, CSV_START, Status
from dynamicvit.comparison import compare as run_comparison
from dynamicvit.errors import InputError
from dynamicvit.plots.comparison import save_comparison
from dynamicvit.utils.outputs import check_target

_TRAINING, _TIMING = "Training", "Timing"


@app.command("compare")
def compare(
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="Images to fine-tune on, named as DATA elsewhere."
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="Images to evaluate on; by default a tenth of --data, held out."
        ),
    ] = None,
    model_name: Model = None,
    macs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUDGET",
            help="Budget: 0.64 (of dense), 64% or 0.8G; may be repeated; by default 0.64.",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Names separated by commas, each also with -merged or -removed; 'all', "
            "'ablations', or both.",
        ),
    ] = "all",
    trained: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A trained model to compare as it is; may be repeated."),
    ] = None,
    output: Output = Path("comparison"),
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only methods that work untrained.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="Runs of each method, with seeds 0, 1, ...", min=1)
    ] = 1,
    images: Annotated[
        int,
        typer.Option(help="Images that each method sees.", min=1, rich_help_panel=_TRAINING),
    ] = 8000,
    recipe: RecipeIfAny = None,
    overrides: Overrides = None,
    no_timing: Annotated[
        bool,
        typer.Option("--no-timing", help="Leave throughput out.", rich_help_panel=_TIMING),
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(
            help="Seconds to measure each throughput; at least 5 pairs.", rich_help_panel=_TIMING
        ),
    ] = 10.0,
    checkpoint: Checkpoint = None,
    no_pretrained: NoPretrained = False,
    unlabeled: Unlabeled = None,
    class_map: ClassMapOption = None,
    crop_pct: CropPct = None,
    views: ViewsOption = None,
    strict: Strict = False,
    precision: Precision = "fp32",
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Compare DynamicViT with other methods at the same MACs, on your model and images.

    Every method comes as near to the budget as it can, is fine-tuned by the same recipe on as many
    images, and is timed in turn with the dense network. Of a segmentation model mIoU and the
    pixels that agree are compared. The folder keeps every row, so the same
    command resumes, and another one (more budgets, methods, seeds) adds to the same table.

    Example: dynamicvit compare --model deit_tiny_patch16_224 --data photos --macs 0.5
    """
    if model_name is None:
        raise InputError("Missing option '--model'.")
    if data is None:
        raise InputError("Missing option '--data'.")
    check_folder(output, names=[plot.name for plot in output.glob("accuracy_over_*")])
    if os.path.lexists(output / CSV_NAME):
        check_target(output / CSV_NAME, "--output", start=CSV_START)
    use_threads(threads)
    averaged = None if views is None else parse_views(views)
    console = Console()
    model = load(
        model_name,
        checkpoint=checkpoint,
        pretrained=not no_pretrained,
        default_method="dynamicvit",  # fresh: a dense network is told from one that was saved
    )
    try:
        with progress_bar(console) as bar:
            lines = run_comparison(
                model,
                data,
                output,
                methods=methods,
                macs=macs or (0.64,),
                validation=validation,
                unlabeled=unlabeled or (),
                trained=trained or (),
                class_map=class_map,
                train=not no_train,
                images=images,
                seeds=seeds,
                recipe=recipe,
                overrides=with_options(overrides, {}),
                timing=not no_timing,
                seconds=seconds,
                precision=precision,
                crop_pct=crop_pct,
                views=averaged,
                strict=strict,
                workers=workers,
                threads=threads,
                progress=_Shown(bar, console),
                tell=lambda line: say(console, line),
            )
    except KeyboardInterrupt as stop:
        where = f"interrupted; what was done is in {output}, the same command resumes"
        raise StoppedError(where, getattr(stop, "signum", signal.SIGINT)) from None
    console.print(results_table(lines), highlight=False)
    if any(line.timings for line in lines):
        console.print(costs_table(lines), highlight=False)
    plots = save_comparison(lines, output, ABLATIONS)
    say(console, f"saved {output / CSV_NAME}, {', '.join(f'{name}.png' for name in plots)}")


class _Shown:
    """Shows how far a comparison is: two bars, or a line now and then; finished rows as lines."""

    def __init__(self, bar: Bar, console: Console) -> None:
        self.bar, self.console, self.lines = bar, console, LineNowAndThen(console)
        self.whole = bar.add_task("rows", total=None, note="")
        self.training = bar.add_task("  training", total=None, note="", visible=False)

    def __call__(self, status: Status) -> None:
        """Show a status."""
        self.bar.update(self.whole, total=status.total, completed=status.done, note=status.doing)
        if status.row is not None:
            say(self.console, f"{status.doing}: {status.row}")
        step = status.training
        if step is None:
            self.bar.update(self.training, visible=False)
            return
        note = f"{step.images_per_second:.1f} images/s loss {step.losses['total']:.3f}"
        done, steps = step.step + 1, step.steps
        self.bar.update(self.training, total=steps, completed=done, note=note, visible=True)
        self.lines.say(f"{status.doing}: step {done} of {steps}, {note}")
