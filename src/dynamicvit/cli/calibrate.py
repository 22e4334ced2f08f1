"""`dynamicvit calibrate`: a budget per image, found on images without labels."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from dynamicvit.cli.console import check_folder, progress_bar, say
from dynamicvit.cli.inference import load_at_budget, say_if_untrained
from dynamicvit.cli.options import (
    IMAGES,
    AddOn,
    Checkpoint,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Method,
    Model,
    NoPretrained,
    Output,
    Policy,
    Released,
    ScheduleOption,
    Threads,
    check_one_model,
    chosen_model,
    parse_image_size,
    use_threads,
)
from dynamicvit.core.hub import MODEL_FILES
from dynamicvit.data import open_data, taken_by
from dynamicvit.errors import InputError
from dynamicvit.evaluation import counts
from dynamicvit.evaluation.counts import Counts, calibrate_on
from dynamicvit.runtimes import is_exported

#: Images that are named at either end.
_NAMED = 5


def calibrate(
    data: Annotated[
        str,
        typer.Argument(metavar="IMAGES", help="As the model will see; labels are ignored."),
    ],
    output: Output,
    model_name: Model = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    cap: Annotated[
        float | None,
        typer.Option(help="No image keeps more than so many times the mean of a stage."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Images to calibrate on.", rich_help_panel=IMAGES)
    ] = counts.IMAGES,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    no_pretrained: NoPretrained = False,
    threads: Threads = None,
) -> None:
    """Let hard images keep more patches than easy ones, as many on average as MODEL does now.

    Writes a folder that other commands take as --model. Says what images of IMAGES keep that it was
    not calibrated on, and which keep the fewest and the most.

    Example: dynamicvit calibrate photos --model runs/mine -o runs/per-image
    """
    check_one_model(model_name, released)
    if model_name is not None and is_exported(model_name):
        raise InputError(f"{model_name} is an exported file: give the model it was made from")
    size = parse_image_size(image_size)
    check_folder(output, names=MODEL_FILES)
    use_threads(threads)
    source = open_data(data, labeled=False)
    name = chosen_model(model_name, released)
    model, size = load_at_budget(
        name,
        checkpoint=checkpoint,
        addon=addon,
        keep_ratio=keep_ratio,
        schedule=schedule,
        policy=policy,
        method=method,
        image_size=size,
        pretrained=not no_pretrained,
    )
    model.warns_untrained = False
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    with progress_bar() as bar:
        task = bar.add_task("calibrating", total=min(len(source), 2 * images), note="")
        found = calibrate_on(
            model,
            taken_by(model, source).for_evaluation(model, size, crop_pct),
            images=images,
            cap=cap,
            progress=lambda done: bar.advance(task, done),
        )
    say_if_untrained(name, model)
    model.cpu().save_pretrained(output)
    _print(Console(), found, model.schedule.kept(math.prod(model.bound.grid(*size))))
    typer.echo(f"saved {output}: dynamicvit eval DATA --model {output}")


def _print(console: Console, found: Counts, asked: tuple[int, ...]) -> None:
    table = Table("stage", box=None, pad_edge=False)
    for title in ("asked", "mean", "deviation", "fewest", "most"):
        table.add_column(title, justify="right")
    kept = found.kept.float()
    for stage, count in enumerate(asked):
        own = kept[:, stage]
        spread = own.std(correction=0)
        ends = (f"{int(own.min())}", f"{int(own.max())}")
        table.add_row(f"{stage + 1}", f"{count}", f"{own.mean():.1f}", f"{spread:.1f}", *ends)
    console.print(table, highlight=False)
    which = "the images it was calibrated on" if found.seen else "images it was not calibrated on"
    say(console, f"patches that {len(kept)} images keep, {which}")
    ordered = found.by_count()
    for title, some in (("fewest", ordered[:_NAMED]), ("most", ordered[: -_NAMED - 1 : -1])):
        say(console, f"{title}: {', '.join(f'{path} {kept}' for path, kept in some)}")
