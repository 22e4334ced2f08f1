"""Times a network dense and pruned, or two files, in turn in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
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
from dynamicvit.evaluation.bench.memory import MEASURED, peak_memory
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
from dynamicvit.utils.files import temporary_folder

BATCH_SIZES = (1, 8, 32)

#: Setting of the dense network that all others are compared with.
REFERENCE = Setting("eager", "fp32")

Progress = Callable[[int, str, float], None]
"""Called with the batch size, the current work, and the share done of this batch size's time."""


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
    """Time dense and pruned inference in turn, in one run, on images of noise.

    All settings of a batch size take turns, so that a machine that slows down slows all of them.
    Compiling, writing files and first calls are not counted.

    In eager mode the dense network is the backbone as its own library runs it; in other runtimes
    it runs the code of the pruned one, with every saving but dropped tokens.

    Args:
        model: the network, on the device to measure; its mode is restored afterwards.
        batch_sizes: images in a batch.
        runtimes: keys of :data:`~dynamicvit.runtimes.RUNTIMES`.
        precisions: of :data:`~dynamicvit.runtimes.PRECISIONS`; runtimes have rows for those that
            they compute in.
        image_size: side of a square image, or height and width, in pixels; by default the
            backbone's own.
        threads: CPU threads; by default all cores available to this process.
        seconds: to measure each row, at least
            :data:`~dynamicvit.evaluation.bench.timer.MIN_ROUNDS` rounds.
        samples: number of rounds (2 or more), in place of ``seconds``.
        dense: network to compare with in eager mode; by default the model's backbone.
        reference: also time the dense network in eager fp32, if that is not a row.
        calibrate: a source of images for int8; without one int8 is for speed only.
        memory: also measure :func:`~dynamicvit.evaluation.bench.peak_memory` at the largest batch.
        progress: called as the work goes on.

    Raises:
        InputError: for a value that can't be used, an image size that the backbone refuses, or a
            missing package or compiler.
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
            raise InputError(f"runtime {name}: another dense network needs eager mode")
    size = resolve_image_size(model, image_size)
    original = DenseNetwork(model) if dense is None else dense
    pairs = [
        _Pair(
            *each,
            original if each.runtime == REFERENCE.runtime else RUNTIMES[each.runtime].dense(model),
            model,
        )
        for each in settings
    ]
    networks = {model, *(pair.dense for pair in pairs)}
    own_macs = schedule_macs(model, DENSE, size)  # the backbone's
    macs = {
        network: own_macs if dense is None and network is original else _macs(network, size)
        for network in networks
    }
    rows: list[BenchRow] = []
    timer_class()  # quietly, before a runtime imports its module
    with (
        temporary_folder() as folder,
        eval_mode(model, original),
        untrained_on_purpose(model),
        torch_threads(threads),
    ):
        for batch_size in batch_sizes:
            images = torch.randn(batch_size, *model.bound.input_shape(size), device=device)
            report = partial(progress or (lambda *_: None), batch_size)
            work = []
            for pair in pairs:
                report(f"{pair.runtime} {pair.precision}, preparing", 0.0)
                work += pair.prepare(images, folder, calibrate)
            if reference and REFERENCE not in settings:
                eager = RUNTIMES[REFERENCE.runtime]
                work.append(eager.prepare(original, images, REFERENCE.precision))
            report("timing", 0.0)
            budget = seconds * len(pairs)
            times = time_in_turn(work, threads, budget, samples, partial(report, "timing"))
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
        peaks = [
            peak_memory(
                model,
                max(batch_sizes),
                precision=precision,
                image_size=size,
                threads=threads,
                graph=graph,
                runtime=name,
                folder=folder,
            )
            for name, precision in settings
            for graph in ((False, True) if name == "eager" else (False,))
            if memory and name in MEASURED
        ]
    return BenchReport(
        tuple(rows),
        model.schedule,
        model.method.name,
        size,
        threads,
        device.type,
        processor_name(device.type),
        versions(setting.runtime for setting in settings),
        dense_macs=own_macs,
        pruned_macs=count_macs(model, size),
        int8=(calibrate or "two photographs, for speed only") if int8 else None,
        memory=tuple(peaks),
        frames=model.bound.frames,
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
    """Time an exported file, in turn with another one: the rows' "pruned" and "dense" networks.

    Args:
        file: of :func:`~dynamicvit.runtimes.export`.
        against: another file, such as the dense network's.
        batch_sizes: images in a batch; by default the files' own, or :data:`BATCH_SIZES`.
        precisions: "fp32" runs a file as it is; "bf16" is for OpenVINO's.
        threads: see :func:`bench`.
        seconds: see :func:`bench`.
        samples: see :func:`bench`.
        progress: see :func:`bench`.

    Raises:
        InputError: for a file that can't be read or run, a value that can't be used, or files that
            take different images.
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
            images = torch.randn(batch_size, *about[0].input_shape)
            work = [
                RUNTIMES[kind].prepare(model, images, precision)
                for precision, each in models.items()
                for kind, model in zip(kinds, each, strict=True)
            ]
            report = partial(progress, batch_size, "timing") if progress else None
            times = time_in_turn(work, threads, seconds * len(models), samples, report)
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
        about[-1].method,
        about[-1].input_size[1:],
        threads,
        "cpu",
        processor_name(),
        versions(kinds),
        against=None if against is None else str(against),
        frames=about[-1].frames,
    )


class _Pair(NamedTuple):
    """The networks of one row."""

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


def _macs(network: nn.Module, image_size: tuple[int, int]) -> int:
    if isinstance(network, DenseNetwork):  # its library runs the last block whole
        return schedule_macs(network.backbone, DENSE, image_size)
    return executed_macs(network, image_size)


def _batch_sizes(
    paths: Sequence[Path], about: Sequence[Description], asked: Sequence[int] | None
) -> Sequence[int]:
    """Batch sizes that all files take: of a fixed batch its own only, as others would be padded."""
    if len({each.input_shape for each in about}) > 1:
        sizes = " and ".join("x".join(map(str, each.input_shape)) for each in about)
        raise InputError(f"{' and '.join(map(str, paths))} take different images: {sizes}")
    sizes = asked or next(([each.batch] for each in about if each.batch), BATCH_SIZES)
    for path, each in zip(paths, about, strict=True):
        wrong = [size for size in sizes if each.batch not in (None, size)]
        if wrong:
            raise InputError(f"{path} takes batches of {each.batch}, not of {wrong[0]}")
    return sizes


def _names(paths: Sequence[Path]) -> tuple[str, str]:
    """Names of the first and the last file, or their paths if the names are the same."""
    first, last = paths[0], paths[-1]
    if first.name == last.name:
        return str(first), str(last)
    return first.name, last.name
