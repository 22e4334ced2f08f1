"""How much faster: a network dense and pruned, in every runtime, timed in turn in one run."""

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
from dynamicvit.costs import DENSE, ImageSize, executed_macs, resolve_image_size, schedule_macs
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.machine import available_cores, torch_threads
from dynamicvit.evaluation.bench.plan import Setting, check_plan, check_weights, settings_of
from dynamicvit.evaluation.bench.rows import BenchRow
from dynamicvit.evaluation.bench.runtimes import RUNTIMES, Job
from dynamicvit.evaluation.bench.timer import time_in_turn, timer_class

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
    progress: Progress | None = None,
) -> list[BenchRow]:
    """Time dense and pruned inference in turn, in one run.

    All settings of a batch size take turns, so that a machine that slows down slows all of them.
    Compiling, writing files and first calls are not counted. The images are noise: the times
    don't depend on them.

    In eager mode the dense network is the backbone as its own library runs it; in the others it is
    run as the pruned one is, with all that is saved there besides tokens.

    Args:
        model: the network, on the device to measure; its mode is restored afterwards.
        batch_sizes: images in a batch, rows for each.
        runtimes: keys of ``RUNTIMES``: "eager", "compile", "onnx", "openvino".
        precisions: of ``PRECISIONS``; runtimes that don't compute in one have no row of it.
        image_size: side of a square image, or height and width, in pixels; by default the size the
            backbone was made for.
        threads: CPU threads for all; by default all cores this process may use.
        seconds: how long each row is measured, but at least
            :data:`~dynamicvit.evaluation.bench.timer.MIN_ROUNDS` rounds.
        samples: or how many rounds there are (2 or more).
        dense: what to compare with in eager mode, where it is not the model's own backbone.
        reference: time the dense network in eager fp32 too, where that is no row of its own.
        calibrate: a source of images for int8; without one its files are for speed only.
        progress: told of what is done.

    Raises:
        InputError: for a value that can't be, an image size that the backbone refuses, or a
            package or compiler that is missing.
        ExportMismatchError: if an exported file does not do what the model does.
    """
    threads = available_cores() if threads is None else threads
    check_plan(batch_sizes, threads, seconds, samples)
    check_weights(model)
    device = next(model.parameters()).device
    settings, _ = settings_of(runtimes, precisions, device.type)
    for name, precision in settings:
        RUNTIMES[name].check(precision)
        if dense is not None and name != REFERENCE.runtime:
            raise InputError(f"another dense network is compared with in eager mode, not in {name}")
    height, width = resolve_image_size(model, image_size)
    original = DenseNetwork(model) if dense is None else dense
    pairs = [_Pair(*each, _dense(each, model, original), model) for each in settings]
    networks = {model, *(pair.dense for pair in pairs)}
    macs = {network: _macs(network, (height, width)) for network in networks}
    rows = []
    timer_class()  # before a runtime imports, with a word on compilers, what the timer imports
    with (
        TemporaryDirectory() as folder,
        eval_mode(model, original),
        untrained_on_purpose(model),
        torch_threads(threads),
    ):
        for batch_size in batch_sizes:
            images = torch.randn(batch_size, model.in_chans, height, width, device=device)
            tell = partial(progress, batch_size) if progress is not None else _tell_nobody
            work = []
            for pair in pairs:
                tell(f"{pair.runtime} {pair.precision}, making ready", 0.0)
                work += pair.prepare(images, Path(folder), calibrate)
            if reference and REFERENCE not in settings:
                job = Job(original, "reference", images, REFERENCE.precision, Path(folder))
                work.append(RUNTIMES[REFERENCE.runtime].prepare(job))
            tell("timing", 0.0)
            budget = seconds * len(pairs)
            times = time_in_turn(work, threads, budget, samples, partial(tell, "timing"))
            del work  # runtimes map the files
            if not reference:
                base = None
            elif REFERENCE in settings:
                base = times[2 * settings.index(REFERENCE)]
            else:
                base = times[-1]
            for place, pair in enumerate(pairs):
                row = BenchRow(
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
                rows.append(row)
    return rows


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
        # Beside each other lie files of the same kind only.
        folder = folder / self.runtime
        jobs = [
            Job(network, name, images, self.precision, folder, calibrate)
            for name, network in (("dense", self.dense), ("pruned", self.pruned))
        ]
        return [runtime.prepare(job) for job in jobs]


def _dense(setting: Setting, model: DynamicViT, original: nn.Module) -> nn.Module:
    if setting.runtime == REFERENCE.runtime:
        return original
    return RUNTIMES[setting.runtime].dense(model)


def _macs(network: nn.Module, image_size: tuple[int, int]) -> int:
    if isinstance(network, DenseNetwork):  # its library runs all of it
        return schedule_macs(network.backbone, DENSE, image_size)
    return executed_macs(network, image_size)


def _tell_nobody(doing: str, share: float) -> None:
    """What is told where nobody asked."""
