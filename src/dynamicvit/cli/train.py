"""`dynamicvit train`: fine-tune a sparsified model on a folder of images."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from torch.utils.data import ConcatDataset

from dynamicvit.cli import app
from dynamicvit.cli.options import Checkpoint, ClassMapOption, Precision, Strict, Threads, Workers
from dynamicvit.data import (
    ImageData,
    Loader,
    class_map_for,
    eval_transform,
    split,
    train_transform,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation import evaluate
from dynamicvit.loading import load_model
from dynamicvit.model import DynamicViT
from dynamicvit.training import Recipe, TrainingReport, load_recipe
from dynamicvit.training import loop as training


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Folder of class folders, a tar, or a flat folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trained model.")],
    model: Annotated[
        str | None, typer.Option(help="timm name, saved folder or checkpoint; else the recipe's.")
    ] = None,
    checkpoint: Checkpoint = None,
    recipe: Annotated[str, typer.Option(help="Built-in recipe or YAML file.")] = "small_data",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe."),
    ] = None,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="More images, without labels; may be repeated.")
    ] = None,
    class_map: ClassMapOption = None,
    precision: Precision = "fp32",
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output.")] = False,
    strict: Strict = False,
    workers: Workers = 1,
    threads: Threads = None,
) -> None:
    """Fine-tune MODEL with its own dense self as teacher.

    Writes a folder that `eval`, `bench`, `visualize` and `from_pretrained` read, with the resolved
    recipe, a log of every step and a report. An interrupted run goes on with --resume.
    """
    console = Console()
    plan = load_recipe(recipe, overrides or [])
    name = model or plan.model
    if name is None:
        raise InputError(f"recipe {recipe} names no model: give --model")
    _check_output(output, resume)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    arguments = {"drop_path_rate": plan.drop_path} if plan.drop_path else {}
    student = load_model(
        name, checkpoint=checkpoint, keep_ratio=plan.keep_ratio, stages=plan.stages, **arguments
    )
    loader, held_out = _loaders(
        student, plan, data, unlabelled or [], class_map, strict, workers, console
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    amp_dtype = torch.bfloat16 if precision == "bf16" else None
    report = _train_with_progress(student, loader, plan, output, resume, device, amp_dtype, console)
    student.save_pretrained(output)
    results = {"training": asdict(report), "keep_ratios": student.schedule.keep_ratios}
    console.print(
        f"trained on {report.images} images in {report.seconds:.0f} s "
        f"({report.images / report.seconds:.1f} images/s); kept in training "
        + "/".join(f"{kept:.2f}" for kept in report.kept)
    )
    if report.skipped:
        console.print(f"left out {len(report.skipped)} unreadable images")
    if held_out is not None:
        result = evaluate(student, held_out, device=device, amp_dtype=amp_dtype)
        results["held_out"] = asdict(result)
        console.print(f"held-out top-1 {100 * (result.top1 or 0):.2f} % of {result.labelled}")
    (output / "report.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"saved {output}: dynamicvit eval DATA --model {output}")


def _check_output(output: Path, resume: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder")
    if not resume and (output / "checkpoint.pt").exists():
        raise InputError(f"{output} holds a run: go on with --resume, or choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    probe = output / ".writable"
    probe.touch()
    probe.unlink()


def _loaders(
    model: DynamicViT,
    recipe: Recipe,
    root: Path,
    unlabelled: list[Path],
    class_map: str | None,
    strict: bool,
    workers: int,
    console: Console,
) -> tuple[Loader, Loader | None]:
    """The training batches, and those held out."""
    needs_labels = recipe.losses.classification > 0 or recipe.hold_out > 0
    images = ImageData(root, strict=strict)
    if images.labelled and needs_labels:
        chosen = class_map_for(images, model.num_classes, class_map)
        console.print(f"class map: {chosen.origin}")
        images = images.with_class_map(chosen.index)
    held_out = None
    if recipe.hold_out:
        images, kept_aside = split(images, recipe.hold_out, recipe.seed)
        held_out = Loader(kept_aside.with_transform(eval_transform(model)), 32, num_workers=workers)
    transform = train_transform(model, **recipe.augment.transform_arguments())
    sources = [images, *(ImageData(path, labelled=False, strict=strict) for path in unlabelled)]
    loader = Loader(
        ConcatDataset([source.with_transform(transform) for source in sources]),
        recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
        num_workers=workers,
        drop_last=True,
    )
    return loader, held_out


def _train_with_progress(
    model: DynamicViT,
    loader: Loader,
    recipe: Recipe,
    output: Path,
    resume: bool,
    device: str,
    amp_dtype: torch.dtype | None,
    console: Console,
) -> TrainingReport:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with ProgressBar(*columns, console=console) as bar:
        steps = training.total_steps(recipe, loader)
        task = bar.add_task("training", total=steps, rate="", state="")

        def show(progress: training.Progress) -> None:
            kept = "/".join(f"{share:.2f}" for share in progress.kept)
            bar.update(
                task,
                completed=progress.step + 1,
                rate=f"{progress.images_per_second:.1f} images/s",
                state=f"loss {progress.losses['total']:.3f} kept {kept}",
            )

        try:
            return training.train(
                model,
                loader,
                recipe,
                output,
                resume=resume,
                device=device,
                precision=amp_dtype,
                on_step=show,
            )
        except training.Interrupted:
            bar.stop()
            console.print(f"interrupted; saved {output}. The same command with --resume goes on.")
            raise typer.Exit(130) from None
