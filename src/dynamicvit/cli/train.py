"""`dynamicvit train`: fine-tune a sparsified model on images."""

from __future__ import annotations

import copy
import logging
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch.utils.data import ConcatDataset

from dynamicvit.checkpoints.loading import load, set_drop_path
from dynamicvit.cli import app
from dynamicvit.cli.console import (
    LineNowAndThen,
    StoppedError,
    check_folder,
    main_console,
    progress_bar,
    say,
    write_json,
)
from dynamicvit.cli.dry_run import describe_run
from dynamicvit.cli.options import (
    Checkpoint,
    ClassMapOption,
    DataIfAny,
    ModelOrRecipes,
    NoPretrained,
    Released,
    Strict,
    Threads,
    Unlabeled,
    Workers,
    chosen_model,
    use_threads,
)
from dynamicvit.cli.teacher import (
    TeacherCheckpoint,
    TeacherName,
    foreign_teacher,
    with_teacher,
)
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.data import (
    ImageData,
    Loader,
    class_map_for,
    eval_transform,
    split,
    train_transform,
)
from dynamicvit.errors import InputError
from dynamicvit.training import Progress, Recipe, TrainingReport, load_recipe
from dynamicvit.training import loop as training
from dynamicvit.training.checkpoint import BEST, cannot_write, holds_run
from dynamicvit.training.curves import draw_curves
from dynamicvit.training.external_teacher import ForeignTeacher
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.log import LOG_NAME, read_log
from dynamicvit.training.tensorboard import TENSORBOARD_FOLDER, TensorBoard
from dynamicvit.utils.distributed import Processes, launched_precision, launched_processes
from dynamicvit.utils.precision import autocast_dtype
from dynamicvit.utils.signals import terminated_like_interrupted


@app.command()
def train(
    data: DataIfAny = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to write into; made if need be.", readable=False
        ),
    ] = None,
    model_name: ModelOrRecipes = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    no_pretrained: NoPretrained = False,
    teacher_name: TeacherName = None,
    teacher_checkpoint: TeacherCheckpoint = None,
    recipe: Annotated[str, typer.Option(help="Built-in recipe or YAML file.")] = "small_data",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe."),
    ] = None,
    unlabeled: Unlabeled = None,
    class_map: ClassMapOption = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="bf16 and fp16 run under autocast; fp16 needs a GPU."),
    ] = "fp32",
    accumulate: Annotated[
        int, typer.Option(help="Passes in which a process works off its images of a step.")
    ] = 1,
    grad_checkpointing: Annotated[
        bool, typer.Option("--grad-checkpointing", help="Less memory, a third more computation.")
    ] = False,
    sharded: Annotated[
        bool,
        typer.Option("--shard", help="Spread weights and optimizer over the processes (FSDP)."),
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Refuse to start anew: there must be a run to go on.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on with a run though the recipe differs.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    strict: Strict = False,
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Fine-tune MODEL with its own dense self as teacher, or with --teacher another network.

    Writes a folder that `eval`, `bench`, `visualize` and `from_pretrained` read, with the resolved
    recipe, a log of every step, its curves (PNG, TensorBoard) and a report. The same command goes
    on with an interrupted run. Several processes, started by torchrun or accelerate launch, share
    the batches of the recipe. With --dry-run DATA and --output may be left out.
    """
    if data is None and (unlabeled or not dry_run):
        raise InputError("Missing argument 'DATA'.")
    if output is None and not dry_run:
        raise InputError("Missing option '--output' / '-o'.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processes = launched_processes(device, sharded=sharded)
    console = main_console(processes)
    if not processes.is_main:  # its warnings are about the run, which is everyone's
        logging.getLogger("dynamicvit.training").setLevel(logging.ERROR)
    plan = with_teacher(load_recipe(recipe, overrides or []), teacher_name)
    if model_name is None and released is None:
        model_name = plan.model
        if model_name is None:
            raise InputError(f"recipe {recipe} names no model: give --model, or --released")
    name = chosen_model(model_name, released)
    dtype = launched_precision(autocast_dtype(precision), processes.device)
    going_on = output is not None and _check_output(output, resume)
    use_threads(threads)
    images = (
        [] if data is None else _training_images(plan, data, unlabeled or [], class_map, strict)
    )
    torch.manual_seed(plan.seed)
    student = load(
        name,
        checkpoint=checkpoint,
        keep_ratio=plan.keep_ratio,
        stages=plan.stages,
        pretrained=not (no_pretrained or dry_run),
    )
    if plan.policy is not None:  # also of a model that had another: it learns who should stay now
        student.policy = plan.policy
    if plan.drop_path:
        set_drop_path(student, plan.drop_path)
    if grad_checkpointing:
        student.set_grad_checkpointing()
    teacher = foreign_teacher(
        student, plan, teacher_checkpoint, pretrained=not dry_run, console=console
    )
    loader, kept_aside = None, None
    if images:
        loader, kept_aside = _loaders(student, plan, images, class_map, workers, console)
    if dry_run or loader is None or output is None:
        plan = plan.model_copy(update={"model": name})
        describe_run(
            console,
            student,
            teacher,
            plan,
            images,
            loader,
            kept_aside,
            processes,
            accumulate,
            dtype,
        )
        processes.close()
        return
    is_new = not output.exists()
    if going_on:
        say(console, f"going on with the run in {output}")
    held_out = None if kept_aside is None else _held_out(student, kept_aside, images[0].labeled)
    how = _How(held_out, going_on, force, processes, dtype, accumulate, compiled)
    try:
        with terminated_like_interrupted():
            try:
                report = _train_with_progress(student, teacher, loader, plan, output, how, console)
                if not report.images:
                    raise InputError(f"none of the images of {data} that were drawn can be read")
            except InputError:
                # Found only while reading (an unreadable image with --strict): no trace stays.
                if processes.is_main and not holds_run(output):
                    _take_back(output, is_new)
                elif processes.is_main:
                    with suppress(InputError):  # they show what went wrong, which is to be said
                        _draw_curves(output)
                raise
            if processes.is_main:
                student.save_pretrained(output)
            results = _results(student, report, held_out, console)
            results["teacher"] = {
                **plan.teacher.model_dump(),
                "checkpoint": teacher_checkpoint and str(teacher_checkpoint),
            }
            if processes.is_main:
                write_json(output / "report.json", results)
                _draw_curves(output)
    except KeyboardInterrupt as stop:
        raise StoppedError(_how_to_go_on(output), getattr(stop, "signum", signal.SIGINT)) from None
    say(console, f"saved {output}: dynamicvit eval DATA --model {output}")
    processes.close()


@dataclass(frozen=True)
class _How:
    """How a run is done, which changes nothing of what it does.

    Attributes:
        held_out: images to evaluate on.
        resume: go on from the checkpoint.
        force: even if it is of another recipe.
        processes: that share the run.
        precision: dtype of autocast, if any.
        accumulate: passes in a step.
        compiled: with torch.compile.
    """

    held_out: HeldOut | None
    resume: bool
    force: bool
    processes: Processes
    precision: torch.dtype | None
    accumulate: int
    compiled: bool


# ---------------------------------------------------------------- what goes in


def _check_output(output: Path, resume: bool) -> bool:
    """Whether there is a run to go on with; refused if there is anything else."""
    check_folder(output)
    if holds_run(output):
        return True
    if resume:
        raise InputError(f"--resume: {output} holds no checkpoint.pt to go on from")
    if (output / "model.safetensors").exists():
        raise InputError(f"{output} holds a model: choose another folder")
    return False


def _training_images(
    recipe: Recipe, root: str, unlabeled: list[str], class_map: str | None, strict: bool
) -> list[ImageData]:
    """The labeled images, if labels are needed, and those without; refused before any download.

    Raises:
        InputError: for a source that can't be used, or has no labels where the recipe needs them,
            and for a class map where it needs none.
    """
    uses_labels = recipe.losses.classification > 0 or recipe.hold_out > 0
    if class_map and not uses_labels:
        raise InputError(
            f"--class-map {class_map}: with losses.classification=0 and hold_out=0 no label is "
            "used; leave it out"
        )
    images = ImageData(root, labeled=None if uses_labels else False, strict=strict)
    if recipe.losses.classification and not images.labeled:
        raise InputError(
            f"{root} has no labels, which the classification loss needs: set "
            "losses.classification=0 to learn from the dense network alone"
        )
    return [images, *(ImageData(path, labeled=False, strict=strict) for path in unlabeled)]


def _loaders(
    model: DynamicViT,
    recipe: Recipe,
    sources: list[ImageData],
    class_map: str | None,
    workers: int,
    console: Console,
) -> tuple[Loader, Loader | None]:
    """The training batches, and those held out."""
    images, *more = sources
    if images.labeled:
        chosen = class_map_for(images, model.num_classes, class_map)
        images = images.with_class_map(chosen.index)
        say(console, f"class map: {chosen.origin}")
    held_out = None
    if recipe.hold_out:
        images, kept_aside = split(images, recipe.hold_out, recipe.seed)
        held_out = Loader(kept_aside.with_transform(eval_transform(model)), 32, num_workers=workers)
    transform = train_transform(model, **recipe.augment.transform_arguments())
    loader = Loader(
        ConcatDataset([source.with_transform(transform) for source in (images, *more)]),
        recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
        num_workers=workers,
        drop_last=True,
    )
    return loader, held_out


def _held_out(model: DynamicViT, loader: Loader, labeled: bool) -> HeldOut:
    """The images kept aside; without labels the dense network, as it is now, is right."""
    return HeldOut(loader, None if labeled else copy.deepcopy(DenseNetwork(model)))


# ---------------------------------------------------------------- running


def _train_with_progress(
    model: DynamicViT,
    teacher: ForeignTeacher | None,
    loader: Loader,
    recipe: Recipe,
    output: Path,
    how: _How,
    console: Console,
) -> TrainingReport:
    with (
        progress_bar(console, transient=False) as bar,
        TensorBoard(output / TENSORBOARD_FOLDER) as write_scalars,
    ):
        lines = LineNowAndThen(console)
        task = bar.add_task("training", total=training.total_steps(recipe, loader), note="")

        def show(progress: Progress) -> None:
            kept = "/".join(f"{share:.2f}" for share in progress.kept)
            note = (
                f"{progress.images_per_second:.1f} images/s "
                f"loss {progress.losses['total']:.3f} kept {kept}"
            )
            bar.update(task, completed=progress.step + 1, note=note)
            lines.say(f"step {progress.step + 1} of {progress.steps}, {note}, {_left(progress)}")
            for measure, share in progress.held_out.items():
                say(console, f"{_on_held_out(measure, share)} after step {progress.step + 1}")
            write_scalars(progress)

        return training.train(
            model, loader, recipe, output, teacher=teacher, on_step=show, **vars(how)
        )


def _on_held_out(measure: str, share: float) -> str:
    what = {"top1": "top-1", "agreement": "agreement with the dense network"}[measure]
    return f"held-out {what} {100 * share:.2f} %"


def _left(progress: Progress) -> str:
    """The time left, should the rest run as fast as this."""
    images_a_step = progress.images / (progress.step + 1)
    seconds = (progress.steps - progress.step - 1) * images_a_step / progress.images_per_second
    return f"{timedelta(seconds=round(seconds))} left"


def _draw_curves(output: Path) -> None:
    path = output / "curves.png"
    try:
        steps = read_log(output / LOG_NAME)
        if steps:
            draw_curves(steps, path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _how_to_go_on(output: Path) -> str:
    if holds_run(output):
        return f"interrupted; {output} is saved, the same command goes on"
    return "interrupted before there was anything to save; the same command starts anew"


def _take_back(output: Path, is_new: bool) -> None:
    """Remove what a run has written."""
    for name in ("recipe.yaml", LOG_NAME):
        (output / name).unlink(missing_ok=True)
    events = output / TENSORBOARD_FOLDER
    for file in events.glob("events.out.tfevents.*"):
        file.unlink()
    if events.is_dir() and not any(events.iterdir()):
        events.rmdir()
    if is_new and output.is_dir() and not any(output.iterdir()):
        output.rmdir()


# ---------------------------------------------------------------- what comes out


def _results(
    model: DynamicViT,
    report: TrainingReport,
    held_out: HeldOut | None,
    console: Console,
) -> dict[str, Any]:
    """What the run did, printed and for `report.json`."""
    say(
        console,
        f"trained on {report.images} images in {report.seconds:.0f} s "
        f"({report.images / report.seconds:.1f} images/s); kept in training "
        + "/".join(f"{kept:.2f}" for kept in report.kept),
    )
    if report.skipped:
        say(console, f"left out {len(report.skipped)} unreadable images")
    if report.bad_steps:
        say(console, f"left out {report.bad_steps} steps that were not finite")
    training = asdict(report)
    result = training.pop("held_out")
    results: dict[str, Any] = {
        "training": training,
        "keep_ratios": model.schedule.keep_ratios,
        "policy": model.schedule.policy,
    }
    if held_out is None or report.held_out is None:
        return results
    results["held_out"] = result
    for measure, share in held_out.score(report.held_out).items():
        say(console, f"{_on_held_out(measure, share)} of {report.held_out.images} images")
        best = report.best
        if best.value is not None and best.value > share:
            say(console, f"it was {100 * best.value:.2f} % after step {best.step}: {BEST}")
    return results
