"""`dynamicvit train`: fine-tune a sparsified model on images."""

from __future__ import annotations

import logging
import signal
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dynamicvit.checkpoints.addon import ADDON_NAME
from dynamicvit.checkpoints.runs import DENSE_FOLDER, holds_run
from dynamicvit.cli.console import (
    StoppedError,
    check_folder,
    main_console,
    say,
    say_left_out,
)
from dynamicvit.cli.dry_run import describe_run
from dynamicvit.cli.inference import refuse_with_schedule
from dynamicvit.cli.options import (
    COST,
    IMAGES,
    WEIGHTS,
    AddOn,
    Checkpoint,
    ClassMapOption,
    ClassNames,
    DataIfAny,
    Frames,
    ImageSizeOption,
    KeepRatio,
    Method,
    ModelOrRecipes,
    NoPretrained,
    Policy,
    Released,
    ScheduleOption,
    Strict,
    Threads,
    Tubelet,
    Unlabeled,
    Workers,
    chosen_model,
    parse_image_size,
    use_threads,
)
from dynamicvit.cli.recipe_options import Overrides, RecipeIfAny, schedule_values, with_options
from dynamicvit.cli.train_view import Bar, say_results
from dynamicvit.core.schedule_file import ScheduleFile
from dynamicvit.core.teacher import has_fresh_classifier
from dynamicvit.errors import InputError, UntrainedWarning
from dynamicvit.training import Training, load_recipe
from dynamicvit.training.output import check_output

_RUN = "The run"


def train(
    data: DataIfAny = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write into; made if needed.", readable=False
        ),
    ] = None,
    model_name: ModelOrRecipes = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    freeze_backbone: Annotated[
        bool,
        typer.Option(
            "--freeze-backbone",
            help="Train the prediction modules alone, in minutes (recipe frozen): the backbone "
            f"stays as it is, and {ADDON_NAME} is for any copy of it.",
        ),
    ] = False,
    recipe: RecipeIfAny = None,
    overrides: Overrides = None,
    unlabeled: Unlabeled = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Distill the logits of another network, by timm's name; by default those of "
            "the dense MODEL.",
        ),
    ] = None,
    dense: Annotated[
        bool,
        typer.Option("--dense", help="Fit the dense model alone, by labels: nothing is dropped."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    no_pretrained: NoPretrained = False,
    teacher_checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Weights for the teacher: .safetensors or .pth.",
            readable=False,
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    class_map: ClassMapOption = None,
    class_names: ClassNames = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="Classes of the model; by default those of DATA's folders, else the weights' own.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    image_size: ImageSizeOption = None,
    frames: Frames = None,
    tubelet: Tubelet = None,
    strict: Strict = False,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(
            help="bf16 and fp16 run under autocast; fp16 needs a GPU.", rich_help_panel=COST
        ),
    ] = "fp32",
    accumulate: Annotated[
        int,
        typer.Option(
            help="Passes in a step (gradient accumulation).",
            rich_help_panel=COST,
        ),
    ] = 1,
    grad_checkpointing: Annotated[
        bool,
        typer.Option(
            "--grad-checkpointing",
            help="Less memory, a third more computation.",
            rich_help_panel=COST,
        ),
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile.", rich_help_panel=COST)
    ] = False,
    workers: Workers = 1,
    threads: Threads = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Fail if there is no run to resume.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Resume a run although the recipe differs.", rich_help_panel=_RUN
        ),
    ] = False,
) -> None:
    """Fine-tune MODEL with the dense model as its teacher, or with --teacher another network.

    If DATA has other classes than the weights, the dense model is fitted to them first, and then
    teaches. With --dense that is all. Images with a mask each are segmented (docs/segmentation.md);
    clips are for models of clips (docs/video.md).

    Writes a folder that `eval`, `bench`, `visualize` and `from_pretrained` read, with the resolved
    recipe, a log of every step, its curves (PNG, TensorBoard) and a report. The same command
    resumes an interrupted run. Several processes, started by torch.distributed.run or accelerate
    launch, share the batches of the recipe. With --dry-run DATA and --output may be left out.

    Example: dynamicvit train photos --model deit_small_patch16_224 -o runs/mine
    """
    if data is None and (unlabeled or not dry_run):
        raise InputError("Missing argument 'DATA'.")
    if output is None and not dry_run:
        raise InputError("Missing option '--output' / '-o'.")
    folders = [Path(each) for each in (data, *(unlabeled or ())) if each and Path(each).is_dir()]
    for folder in folders:
        if output is not None and output.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"--output {output} is among the images of {folder}: choose another")
    refuse_with_schedule(schedule, keep_ratio=keep_ratio, policy=policy)
    found = None if schedule is None else ScheduleFile.load(schedule)
    said = {"keep_ratio": keep_ratio, "policy": policy, "method": method}
    said |= {} if found is None else schedule_values(found, method)
    said |= {"image_size": parse_image_size(image_size), "freeze_backbone": freeze_backbone or None}
    values = with_options(overrides, said)
    named = model_name is not None or released is not None
    if not named and load_recipe(recipe or "small_data", values).model is None:
        raise InputError("no model is named: give --model, --released, or a recipe of a model")
    goes_on = False
    if output is not None:
        check_folder(output)
        goes_on = check_output(output, resume)
    use_threads(threads)
    training = Training(
        data,
        chosen_model(model_name, released) if named else None,
        recipe=recipe,
        overrides=values,
        checkpoint=checkpoint,
        addon=addon,
        pretrained=not no_pretrained,
        teacher=teacher,
        teacher_checkpoint=teacher_checkpoint,
        unlabeled=unlabeled or (),
        class_map=class_map,
        num_classes=num_classes,
        class_names=class_names,
        frames=frames,
        tubelet=tubelet,
        precision=precision,
        accumulate=accumulate,
        grad_checkpointing=grad_checkpointing,
        compiled=compiled,
        strict=strict,
        workers=workers,
        dense=dense,
        plan_only=dry_run,
    )
    if found is not None:
        ScheduleFile.of(found, training.model.depth)
    console = main_console(training.processes)
    _say_what_is_used(training, console)
    if dry_run or output is None:
        describe_run(console, training)
        training.processes.close()
        return
    if not training.processes.is_main:  # its warnings are about the run, which is everyone's
        logging.getLogger("dynamicvit.training").setLevel(logging.ERROR)
    if goes_on:
        say(console, f"resuming the run in {output}")
    what, fitted = f"{training.sources[0].noun}s", training.classes.are_fitted
    try:
        with warnings.catch_warnings(), Bar(console, fitted, what) as show:
            warnings.simplefilter("ignore", UntrainedWarning)  # said above
            report = training.run(output, resume=resume, force=force, on_step=show)
    except KeyboardInterrupt as stop:
        raise StoppedError(_how_to_go_on(output), getattr(stop, "signum", signal.SIGINT)) from None
    say_results(report, console, fitted=fitted, what=what)
    for source in training.sources:
        say_left_out(console, source.left_out)
    say(console, f"saved {output}: dynamicvit eval DATA --model {output}")
    if training.recipe.freeze_backbone:
        size = (output / ADDON_NAME).stat().st_size / 1e6
        say(console, f"saved {output / ADDON_NAME}, {size:.1f} MB, for the backbone as --addon")
    training.processes.close()


def _say_what_is_used(training: Training, console: Console) -> None:
    recipe = training.recipe
    if recipe.teacher.model is not None and training.teacher is None:
        say(console, f"teacher {recipe.teacher.model} is not asked: losses.distillation is 0")
    if training.class_map is not None:
        say(console, f"class map: {training.class_map.origin}")
    if training.classes.are_fitted and not training.dense_only:
        say(
            console,
            f"the weights have other classes: first the dense model is fitted to these "
            f"{training.classes.count}, then it teaches the sparse one (to keep the weights' "
            "classes and use no labels, give their number as --num-classes)",
        )
    elif has_fresh_classifier(training.model):
        say(
            console,
            f"note: the classifier of {training.classes.count} classes is untrained, so the dense "
            "model's answers teach nothing; give trained weights, or labeled images",
        )


def _how_to_go_on(output: Path) -> str:
    if holds_run(output) or holds_run(output / DENSE_FOLDER):
        return f"interrupted; {output} is saved, the same command resumes"
    return "interrupted before there was anything to save; the same command starts anew"
