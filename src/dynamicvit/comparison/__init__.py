"""The paper's comparison: every method at the same MACs, on anyone's model and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dynamicvit.comparison.experiment import Experiment
from dynamicvit.comparison.inputs import (
    dense_of,
    fractions_of,
    possible_of,
    say_if_sparse,
    sources_of,
    trained_before,
    with_class_maps,
)
from dynamicvit.comparison.lines import Line, Row, lines_of, write_csv
from dynamicvit.comparison.rows import (
    ABLATIONS,
    DENSE_NAME,
    Candidate,
    Entry,
    all_names,
    candidate_named,
    candidates,
)
from dynamicvit.comparison.timing import BATCH_SIZES, Timing
from dynamicvit.core.networks import segments
from dynamicvit.data import Views, frames_of
from dynamicvit.data.folders import left_out_in_words
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench import available_cores
from dynamicvit.training import Progress, load_recipe
from dynamicvit.utils.files import write_text
from dynamicvit.utils.lock import owned, refuse_owned
from dynamicvit.utils.precision import autocast_dtype, worthwhile

__all__ = [
    "ABLATIONS",
    "BATCH_SIZES",
    "CSV_NAME",
    "CSV_START",
    "DENSE_NAME",
    "Candidate",
    "Entry",
    "Experiment",
    "Line",
    "Row",
    "Status",
    "Timing",
    "all_names",
    "candidate_named",
    "candidates",
    "compare",
    "lines_of",
    "write_csv",
]

CSV_NAME = "comparison.csv"
CSV_START = b"method,fraction,trained,gmacs"
"""How the table begins."""

#: Keys of a recipe that a comparison sets itself, and by what.
_OWN = {
    **dict.fromkeys(("model", "image_size"), "model"),
    **dict.fromkeys(("method", "policy", "stages"), "methods"),
    **dict.fromkeys(("images", "epochs"), "images"),
    **{"keep_ratio": "macs", "seed": "seeds"},
}


@dataclass(frozen=True)
class Status:
    """How far a comparison is.

    Attributes:
        doing: which row or timing comes.
        done: rows and timings that are there.
        total: of them.
        training: the last step of a row that is being fine-tuned.
        row: that has just been finished.
    """

    doing: str
    done: int
    total: int
    training: Progress | None = None
    row: Row | None = None


def compare(
    model: nn.Module,
    data: str | Path,
    output: str | Path = "comparison",
    *,
    methods: str | Sequence[str] = "all",
    macs: Sequence[str | float] = (0.64,),
    validation: str | Path | None = None,
    unlabeled: Sequence[str | Path] = (),
    trained: Sequence[str | Path] = (),
    class_map: str | None = None,
    train: bool = True,
    images: int = 8000,
    seeds: int = 1,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    timing: bool = True,
    seconds: float = 10.0,
    precision: str = "fp32",
    crop_pct: float | None = None,
    views: Views | None = None,
    strict: bool = False,
    workers: int = 1,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[Status], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Line]:
    """Compare methods at the same MACs: as they are, fine-tuned by one recipe, and timed.

    Each comes as near to the budget as it can. The folder keeps every row: the same call goes on
    where it was stopped, and another one (more budgets, methods, seeds) adds to the same table.

    Args:
        model: a dense network, or a segmentation model, which is not changed; of a DynamicViT the
            dense one inside, and ``tell`` says so if it was trained.
        data: images to fine-tune on, named as for :class:`~dynamicvit.data.ImageData`; of a
            segmentation model images with or without masks.
        output: folder of ``comparison.csv``, of rows, timings and runs.
        methods: names in :data:`~dynamicvit.methods.METHODS`, also with "-merged" or "-removed"
            behind them, or in :data:`ABLATIONS`; or "all" and "ablations".
        macs: budgets, as :func:`~dynamicvit.budgets.parse_budget` reads them.
        validation: images to evaluate on; by default a tenth of ``data``, kept aside.
        unlabeled: more images to fine-tune on, without labels.
        trained: models that were trained before, each compared as it is, at its own budget.
        class_map: see :func:`~dynamicvit.data.class_map_for`.
        train: whether to fine-tune; else only methods that work untrained are compared.
        images: seen by each in training.
        seeds: runs of each, with seeds 0, 1, ...
        recipe: a built-in one, or a YAML file; by default "small_data", "video_small_data" or
            "segmentation", by the model.
        overrides: of its values, as ``key=value``.
        timing: whether throughput is measured, in turn with the dense network.
        seconds: for each throughput.
        precision: "fp32" or "bf16" (autocast).
        crop_pct: share of the short side that the center crop of evaluation takes.
        views: of each video that is evaluated, for a model of clips; by default one. Its frames are
            as far apart as the recipe's.
        strict: an unreadable image is an error.
        workers: processes that read images.
        threads: CPU threads of the timings; by default all cores.
        device: by default the GPU, if there is one.
        progress: told before and after each row and timing, and of each step of training.
        tell: told which class map was found, and which rows are left out and why.

    Returns:
        A line for each method and budget in the folder, the seeds in one, dense first.

    Raises:
        InputError: before anything is run, for a value that can't be, images that can't be used, or
            a method that was named and that the network can't have; if another process is at work
            in the folder.
    """
    refuse_owned(output)
    progress, tell = progress or (lambda _: None), tell or (lambda _: None)
    if seconds <= 0:
        raise InputError(f"seconds are positive, got {seconds}")
    backbone = dense_of(model)
    clips = frames_of(backbone) is not None
    recipe = _recipe(recipe, segments(backbone), clips, crop_pct)
    _check_overrides(overrides)
    chosen = candidates(methods)
    how = {"views": views, "stride": load_recipe(recipe, list(overrides)).video.stride}
    evaluated, fine_tuned_on = sources_of(
        backbone, data, validation, unlabeled, train, strict=strict, **how
    )
    say_if_sparse(model, tell)
    before = [trained_before(str(name), backbone) for name in trained]
    fractions = fractions_of(backbone, macs)
    chosen = possible_of(backbone, chosen, fractions, methods, tell)
    if not train:
        idle = [candidate.name for candidate in chosen if not candidate.works_untrained]
        chosen = [candidate for candidate in chosen if candidate.works_untrained]
        if idle and (chosen or before):
            tell(f"left out {', '.join(idle)}: they mean nothing before they are trained")
    if not chosen and not before:
        raise InputError(f"none of the methods {methods!r} works untrained: fine-tune them")
    evaluated, *images_to_train_on = with_class_maps(
        [evaluated, *fine_tuned_on], backbone, class_map, tell
    )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if worthwhile(autocast_dtype(precision), device) is None:
        precision = "fp32"
    experiment = Experiment(
        backbone=backbone,
        evaluated=evaluated,
        trained=images_to_train_on,
        recipe=recipe,
        overrides=[*overrides, f"images={images}"],
        output=Path(output),
        precision=precision,
        device=device,
        workers=workers,
        crop_pct=crop_pct,
        threads=available_cores() if threads is None else threads,
        seconds=seconds,
    )
    for candidate in chosen if images_to_train_on else ():
        experiment.check(candidate)
    with owned(output):
        _run(experiment, experiment.entries([*before, *chosen], fractions, seeds), timing, progress)
        sources = (evaluated, *images_to_train_on)
        for left_out in dict.fromkeys(source.left_out for source in sources):
            if left_out:
                tell(left_out_in_words(left_out))
        lines = lines_of(experiment.known_rows(), experiment.known_timings())
        write_text(Path(output) / CSV_NAME, write_csv(lines), start=CSV_START)
    return lines


def _recipe(recipe: str | None, gives_maps: bool, clips: bool, crop_pct: float | None) -> str:
    """The recipe that is meant.

    Raises:
        InputError: for one of the other task, or an option that is not for segmentation.
    """
    task = "segmentation" if gives_maps else "classification"
    if gives_maps and crop_pct is not None:
        raise InputError(f"crop_pct {crop_pct}: a segmentation model sees whole images")
    usual = "video_small_data" if clips else "small_data"
    recipe = recipe or ("segmentation" if gives_maps else usual)
    if load_recipe(recipe).task != task:
        raise InputError(f"recipe {recipe} is not for {task}, as the model is")
    return recipe


def _check_overrides(overrides: Sequence[str]) -> None:
    """Refuse values of the recipe that a comparison sets itself.

    Raises:
        InputError: naming the one.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _OWN:
            raise InputError(f"{override}: a comparison sets {key} itself, by its {_OWN[key]}")


def _run(
    experiment: Experiment,
    entries: Sequence[Entry],
    timing: bool,
    progress: Callable[[Status], None],
) -> None:
    """Every row, then every timing; what has been done before takes no time."""
    pairs = [(entry.candidate, entry.fraction) for entry in entries if entry.candidate is not None]
    timed = list(dict.fromkeys(pairs)) if timing else []
    total = len(entries) + len(timed)
    for done, entry in enumerate(entries):
        doing = str(entry)
        progress(Status(doing, done, total))
        row = experiment.row(
            entry, lambda step, at=done, what=doing: progress(Status(what, at, total, step))
        )
        progress(Status(doing, done + 1, total, row=row))
    for done, (candidate, fraction) in enumerate(timed, len(entries)):
        progress(Status(f"throughput of {candidate.name} at {fraction:g}", done, total))
        experiment.timing(candidate, fraction)
    progress(Status("done", total, total))
