"""How much faster: a network dense and pruned, or two files, timed in turn in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, eval_mode, untrained_on_purpose
from dynamicvit.costs import (
    DENSE,
    ImageSize,
    count_macs,
    executed_macs,
    resolve_image_size,
    schedule_macs,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.machine import (
    available_cores,
    processor_name,
    torch_threads,
    versions,
)
from dynamicvit.evaluation.bench.memory import peak_memories
from dynamicvit.evaluation.bench.plan import (
    Setting,
    check_plan,
    check_weights,
    load_file,
    network_file,
    settings_of,
)
from dynamicvit.evaluation.bench.report import BenchReport, BenchRow
from dynamicvit.evaluation.bench.timer import time_in_turn, timer_class
from dynamicvit.runtimes import RUNTIMES, Description, Format, format_of, load_exported

#: Images in a batch, unless others are asked for: one at a time, and full batches.
BATCH_SIZES = (1, 8, 32)

#: What all others are compared with: the dense network as it was.
REFERENCE = Setting("eager", "fp32")

Progress = Callable[[int, str, float], None]
"""Called with the batch size, what is being done, and the share done of this batch size's time."""


def bench(
    model: DynamicViT,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    runtimes: Sequence[str] = ("eager",),
    precisions: Sequence[str] = ("fp32", "bf16"),
    image_size: ImageSize = None,
    threads: int | None = None,
    seconds: float = 10.0,
    samples: int | None = None,
    dense: nn.Module | None = None,
    reference: bool = True,
    calibrate: str | None = None,
    memory: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Time dense and pruned inference in turn, in one run.

    All settings of a batch size take turns, so that a machine that slows down slows all of them.
    Compiling, writing files and first calls are not counted. The images are noise: the times
    don't depend on them.

    In eager mode the dense network is the backbone as its own library runs it; in the others it is
    run as the pruned one is, with all that is saved there besides tokens.

    Args:
        model: the network, on the device to measure; its mode is restored afterwards.
        batch_sizes: images in a batch, rows for each.
        runtimes: keys of :data:`~dynamicvit.runtimes.RUNTIMES`.
        precisions: of :data:`~dynamicvit.runtimes.PRECISIONS`; runtimes that don't compute in one
            have no row of it.
        image_size: side of a square image, or height and width, in pixels; by default the size the
            backbone was made for.
        threads: CPU threads for all; by default all cores this process may use.
        seconds: how long each row is measured, but at least
            :data:`~dynamicvit.evaluation.bench.timer.MIN_ROUNDS` rounds.
        samples: or how many rounds there are (2 or more).
        dense: what to compare with in eager mode, where it is not the model's own backbone.
        reference: time the dense network in eager fp32 too, where that is no row of its own.
        calibrate: a source of images for int8; without one its files are for speed only.
        memory: measure peak memory too, at the largest batch, by
            :func:`~dynamicvit.evaluation.bench.peak_memory`; in eager mode also with a graph.
        progress: told of what is done.

    Raises:
        InputError: for a value that can't be used, an image size that the backbone refuses, or a
            package or compiler that is missing.
        ExportMismatchError: if an exported file does not do what the model does.
    """
    threads = available_cores() if threads is None else threads
    check_plan(batch_sizes, threads, seconds, samples)
    check_weights(model)
    device = next(model.parameters()).device
    settings, _ = settings_of(runtimes, precisions, device.type)
    int8 = any(setting.precision == "int8" for setting in settings)
    if calibrate is not None and not int8:
        raise InputError(f"calibrate {calibrate} goes with precision int8")
    for name, precision in settings:
        RUNTIMES[name].ready(precision)
        if dense is not None and name != REFERENCE.runtime:
            raise InputError(f"another dense network is compared with in eager mode, not in {name}")
    size = resolve_image_size(model, image_size)
    original = DenseNetwork(model) if dense is None else dense
    pairs = [_Pair(*each, _dense(each, model, original), model) for each in settings]
    networks = {model, *(pair.dense for pair in pairs)}
    macs = {network: _macs(network, size) for network in networks}
    rows: list[BenchRow] = []
    timer_class()  # before a runtime imports, with a word on compilers, what the timer imports
    with (
        TemporaryDirectory() as folder,
        eval_mode(model, original),
        untrained_on_purpose(model),
        torch_threads(threads),
    ):
        for batch_size in batch_sizes:
            images = torch.randn(batch_size, model.in_chans, *size, device=device)
            tell = partial(progress, batch_size) if progress is not None else _tell_nobody
            work = []
            for pair in pairs:
                tell(f"{pair.runtime} {pair.precision}, making ready", 0.0)
                work += pair.prepare(images, Path(folder), calibrate)
            if reference and REFERENCE not in settings:
                eager = RUNTIMES[REFERENCE.runtime]
                work.append(eager.prepare(original, images, REFERENCE.precision))
            tell("timing", 0.0)
            budget = seconds * len(pairs)
            times = time_in_turn(work, threads, budget, samples, partial(tell, "timing"))
            del work  # runtimes map the files
            base = None
            if reference:  # a row of its own, or timed last
                own = REFERENCE in settings
                base = times[2 * settings.index(REFERENCE) if own else -1]
            rows += (
                BenchRow(
                    batch_size,
                    pair.runtime,
                    pair.precision,
                    threads,
                    dense=times[2 * place],
                    pruned=times[2 * place + 1],
                    reference=base,
                    dense_macs=macs[pair.dense],
                    pruned_macs=macs[model],
                )
                for place, pair in enumerate(pairs)
            )
    return BenchReport(
        tuple(rows),
        model.schedule,
        size,
        threads,
        device.type,
        processor_name(device.type),
        versions(setting.runtime for setting in settings),
        dense_macs=schedule_macs(model, DENSE, size),
        pruned_macs=count_macs(model, size),
        int8=(calibrate or "two photographs, for speed only") if int8 else None,
        memory=peak_memories(model, settings, max(batch_sizes), size, threads) if memory else (),
    )


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
) -> BenchReport:
    """Time an exported file, and in turn with it another one.

    Args:
        file: what :func:`~dynamicvit.runtimes.export` wrote.
        against: another such file, the dense network's for one.
        batch_sizes: images in a batch; by default what the files take, or 1, 8 and 32.
        precisions: "fp32" runs a file as it is; and "bf16" for OpenVINO's.
        threads: see :func:`bench`.
        seconds: see :func:`bench`.
        samples: see :func:`bench`.
        progress: see :func:`bench`.

    Returns:
        Rows whose "pruned" network is the file, and whose "dense" one is the other, both named.

    Raises:
        InputError: for a file that is none of ours or can't be run, a value that can't be used, or
            files that take different images.
    """
    threads = available_cores() if threads is None else threads
    check_plan(batch_sizes or [1], threads, seconds, samples)
    paths = [Path(file)] if against is None else [Path(against), Path(file)]
    kinds = [format_of(path).name for path in paths]
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
            work = [
                RUNTIMES[kind].prepare(model, images, precision)
                for precision, each in models.items()
                for kind, model in zip(kinds, each, strict=True)
            ]
            tell = partial(progress, batch_size, "timing") if progress else None
            times = time_in_turn(work, threads, seconds * len(models), samples, tell)
            for place, precision in enumerate(models):
                own = times[place * len(paths) : (place + 1) * len(paths)]
                row = BenchRow(
                    batch_size,
                    kinds[-1],
                    precision if about[-1].precision == "fp32" else about[-1].precision,
                    threads,
                    pruned=own[-1],
                    dense=None if against is None else own[0],
                    names=_names(paths),
                )
                rows.append(row)
    return BenchReport(
        tuple(rows),
        about[-1].schedule,
        about[-1].input_size[1:],
        threads,
        "cpu",
        processor_name(),
        versions(kinds),
        against=None if against is None else str(against),
    )


class _Pair(NamedTuple):
    """What one row compares."""

    runtime: str
    precision: str
    dense: nn.Module
    pruned: DynamicViT

    def prepare(
        self, images: Tensor, folder: Path, calibrate: str | None
    ) -> list[Callable[[], object]]:
        """The work of the dense network, and that of the pruned one."""
        runtime = RUNTIMES[self.runtime]
        work = []
        for name, network in (("dense", self.dense), ("pruned", self.pruned)):
            if isinstance(runtime, Format):
                size = images.shape[-2:]
                options = runtime, self.precision, tuple(size), folder, calibrate
                file = network_file(network, name, *options)
                network = load_file(file, runtime, self.precision)
            work.append(runtime.prepare(network, images, self.precision))
        return work


def _dense(setting: Setting, model: DynamicViT, original: nn.Module) -> nn.Module:
    if setting.runtime == REFERENCE.runtime:
        return original
    return RUNTIMES[setting.runtime].dense(model)


def _macs(network: nn.Module, image_size: tuple[int, int]) -> int:
    if isinstance(network, DenseNetwork):  # its library runs all of it
        return schedule_macs(network.backbone, DENSE, image_size)
    return executed_macs(network, image_size)


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


def _names(paths: Sequence[Path]) -> tuple[str, str]:
    """What the other file and the file are called: by their names, or paths where those are one."""
    first, last = paths[0], paths[-1]
    if first.name == last.name:
        return str(first), str(last)
    return first.name, last.name


def _tell_nobody(doing: str, share: float) -> None:
    """What is told where nobody asked."""
