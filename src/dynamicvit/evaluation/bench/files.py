"""Exported files timed as they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.machine import available_cores, torch_threads
from dynamicvit.evaluation.bench.measure import BATCH_SIZES, Progress
from dynamicvit.evaluation.bench.plan import check_plan
from dynamicvit.evaluation.bench.rows import BenchRow
from dynamicvit.evaluation.bench.runtimes.exported import run_file
from dynamicvit.evaluation.bench.timer import time_in_turn
from dynamicvit.export import Description, format_of, load_exported


def bench_files(
    file: str | Path,
    against: str | Path | None = None,
    *,
    batch_sizes: Sequence[int] | None = None,
    precisions: Sequence[str] = ("fp32",),
    threads: int | None = None,
    seconds: float = 10.0,
    samples: int | None = None,
    progress: Progress | None = None,
) -> list[BenchRow]:
    """Time an exported file, and in turn with it another one.

    Args:
        file: what :func:`~dynamicvit.export.export` wrote.
        against: another such file, the dense network's for one.
        batch_sizes: images in a batch; by default what the files take, or 1, 8 and 32.
        precisions: "fp32" runs a file as it is; and "bf16" for OpenVINO's.
        threads: see :func:`~dynamicvit.evaluation.bench.bench`.
        seconds: likewise.
        samples: likewise.
        progress: likewise.

    Returns:
        Rows whose "pruned" network is the file, and whose "dense" one is the other.

    Raises:
        InputError: for a file that is none of ours or can't be run, a value that can't be, or
            files that take different images.
    """
    threads = available_cores() if threads is None else threads
    check_plan(batch_sizes or [1], threads, seconds, samples)
    paths = [Path(file)] if against is None else [Path(against), Path(file)]
    rows = []
    with torch_threads(threads):
        models = {
            precision: [load_exported(path, precision) for path in paths]
            for precision in dict.fromkeys(precisions)
        }
        if not models:
            raise InputError("nothing to measure: give at least one precision")
        about = [model.description for model in next(iter(models.values()))]
        for batch_size in _batch_sizes(paths, about, batch_sizes):
            images = torch.randn(batch_size, *about[0].input_size)
            work = [partial(run_file, model, images) for each in models.values() for model in each]
            tell = partial(progress, batch_size, "timing") if progress else None
            times = time_in_turn(work, threads, seconds * len(models), samples, tell)
            for place, precision in enumerate(models):
                own = times[place * len(paths) : (place + 1) * len(paths)]
                dense = None if against is None else own[0]
                inside = models[precision][-1].description.precision
                named = precision if inside == "fp32" else inside
                row = BenchRow(batch_size, format_of(file), named, threads, own[-1], dense)
                rows.append(row)
    return rows


def _batch_sizes(
    paths: Sequence[Path], about: Sequence[Description], asked: Sequence[int] | None
) -> Sequence[int]:
    """What all the files take: of fixed ones their own number only, or the rest would be filled."""
    if len({each.input_size for each in about}) > 1:
        sizes = " and ".join("x".join(map(str, each.input_size)) for each in about)
        raise InputError(f"{' and '.join(map(str, paths))} take other images: {sizes}")
    sizes = asked or next(([each.batch] for each in about if each.batch), BATCH_SIZES)
    for path, each in zip(paths, about, strict=True):
        wrong = [size for size in sizes if each.batch not in (None, size)]
        if wrong:
            raise InputError(f"{path} takes batches of {each.batch}, not of {wrong[0]}")
    return sizes
