"""How much faster and smaller: dense and pruned inference, measured side by side.

A machine's speed drifts by more than a pruned network gains, so the two are timed in turn in one
run and compared pair by pair; what is reported is the median of the pairs' ratios and its spread.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.macs import ImageSize, meta_copy, resolve_image_size
from dynamicvit.model import DynamicViT
from dynamicvit.networks import DenseNetwork, eval_mode

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

#: Precisions by name; ``None`` runs as the weights are (fp32), the others under autocast.
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}

#: Fewer pairs say nothing about their spread, however long they take.
MIN_PAIRS = 5

Progress = Callable[[int, str, float], None]
"""Called after every pair with batch size, precision and the share done of this setting."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Quartiles of at least two values (interpolated between the values that are there)."""
        return cls(*quantiles(sample, n=4, method="inclusive"))


@dataclass(frozen=True)
class BenchRow:
    """Dense against pruned at one batch size and precision.

    Attributes:
        batch_size: images in a batch.
        precision: a key of :data:`PRECISIONS`.
        threads: CPU threads both ran with.
        pairs: how many pairs of runs were timed.
        dense_seconds: time of one dense batch.
        pruned_seconds: time of one pruned batch.
        speedup: dense over pruned time, pair by pair.
    """

    batch_size: int
    precision: str
    threads: int
    pairs: int
    dense_seconds: Spread
    pruned_seconds: Spread
    speedup: Spread

    @property
    def dense_throughput(self) -> float:
        """Images per second, from the median time."""
        return self.batch_size / self.dense_seconds.median

    @property
    def pruned_throughput(self) -> float:
        """Images per second, from the median time."""
        return self.batch_size / self.pruned_seconds.median

    @property
    def conclusive(self) -> bool:
        """Whether the quartiles of the speed-up lie closer together than its median is to 1."""
        return self.speedup.high - self.speedup.low < abs(self.speedup.median - 1)


def bench(
    model: DynamicViT,
    *,
    batch_sizes: Sequence[int] = (1, 8, 32),
    precisions: Sequence[str] = ("fp32", "bf16"),
    image_size: ImageSize = None,
    threads: int | None = None,
    seconds: float = 10.0,
    samples: int | None = None,
    dense: nn.Module | None = None,
    progress: Progress | None = None,
) -> list[BenchRow]:
    """Time the backbone's own dense inference and the pruned path in turn, in one run.

    Every sample is one batch, timed after two untimed ones of the same network, so that what is
    measured is a network at work and not the change between two. Which of the two comes first
    alternates from pair to pair. The images are noise: the times don't depend on them.

    Args:
        model: the network, on the device to measure; its mode is restored afterwards.
        batch_sizes: images in a batch, one row for each.
        precisions: ``"fp32"`` and ``"bf16"`` (autocast), one row for each.
        image_size: side of a square image, or height and width, in pixels; by default the size the
            backbone was made for.
        threads: CPU threads for both; by default all cores this process may use.
        seconds: how long each row is measured, but at least :data:`MIN_PAIRS` pairs.
        samples: or how many pairs each row has (2 or more).
        dense: what to compare with, where it is not the model's own backbone.
        progress: called after every pair.

    Raises:
        InputError: for a value that can't be, an image size that the backbone refuses included.
    """
    threads = available_cores() if threads is None else threads
    _check_plan(batch_sizes, precisions, threads, seconds, samples)
    _check_weights(model)
    height, width = resolve_image_size(model, image_size)
    device = next(model.parameters()).device
    rows = []
    reference = DenseNetwork(model) if dense is None else dense
    with eval_mode(model, reference):
        for precision in precisions:
            for batch_size in batch_sizes:
                shape = (batch_size, model.in_chans, height, width)
                images = torch.randn(shape, device=device)

                def done(share: float, at: tuple[int, str] = (batch_size, precision)) -> None:
                    if progress is not None:
                        progress(*at, share)

                whole = timer_of(partial(reference, images), images, precision, threads)
                pruned = timer_of(partial(model, images), images, precision, threads)
                pairs = list(_pairs(whole, pruned, seconds, samples, done))
                rows.append(_row(batch_size, precision, threads, pairs))
    return rows


def _row(
    batch_size: int, precision: str, threads: int, pairs: list[tuple[float, float]]
) -> BenchRow:
    return BenchRow(
        batch_size=batch_size,
        precision=precision,
        threads=threads,
        pairs=len(pairs),
        dense_seconds=Spread.of([dense for dense, _ in pairs]),
        pruned_seconds=Spread.of([pruned for _, pruned in pairs]),
        speedup=Spread.of([dense / pruned for dense, pruned in pairs]),
    )


def _pairs(
    dense: Timer,
    pruned: Timer,
    seconds: float,
    samples: int | None,
    done: Callable[[float], None],
) -> Iterator[tuple[float, float]]:
    """Pairs of dense and pruned seconds, measured until there are enough."""
    start = time.monotonic()
    pair = 0
    while True:
        # What runs second finds the machine warmer (or throttled): each is first half the time.
        if pair % 2 == 0:
            dense_seconds = dense.timeit(1).median
            pruned_seconds = pruned.timeit(1).median
        else:
            pruned_seconds = pruned.timeit(1).median
            dense_seconds = dense.timeit(1).median
        yield dense_seconds, pruned_seconds
        pair += 1
        share = (
            pair / samples
            if samples is not None
            else min((time.monotonic() - start) / seconds, pair / MIN_PAIRS)
        )
        done(min(share, 1.0))
        if share >= 1:
            return


def timer_of(work: Callable[[], object], images: Tensor, precision: str, threads: int) -> Timer:
    """Times some work at inference; autocast is entered anew each time, as evaluation loops do.

    Args:
        work: what is timed.
        images: those that it works on, for their device.
        precision: a key of :data:`PRECISIONS`.
        threads: CPU threads.
    """
    timer = _timer_class()
    dtype = PRECISIONS[precision]

    def run() -> None:
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            work()

    def infer() -> None:
        with torch.inference_mode():
            run()

    return timer("infer()", globals={"infer": infer}, num_threads=threads)


def _timer_class() -> type[Timer]:
    """torch's timer, imported only when it is needed, and without its word on compilers.

    The import looks for CUDA's compiler, which nothing here uses, and logs that none works.
    """
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils.benchmark import Timer
    finally:
        logger.setLevel(level)
    return Timer


# -------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Peak:
    """Peak resident memory of a process that loads a network and runs one batch.

    Attributes:
        total: bytes, Python and torch and the weights included.
        inference: bytes by which running the batch raised the peak.
    """

    total: int
    inference: int


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of dense against pruned inference at one batch size.

    Attributes:
        batch_size: images in the batch.
        precision: a key of :data:`PRECISIONS`.
        graph: whether the activations were kept for a backward pass.
        dense: the backbone's own inference.
        pruned: the pruned path.
    """

    batch_size: int
    precision: str
    graph: bool
    dense: Peak
    pruned: Peak


def peak_memory(
    model: DynamicViT,
    batch_size: int = 32,
    *,
    precision: str = "fp32",
    image_size: ImageSize = None,
    threads: int | None = None,
    graph: bool = False,
) -> MemoryRow:
    """Peak host memory of dense and of pruned inference, each in a process of its own, on the CPU.

    Only the model's shapes are handed over: memory does not depend on the weights.

    Without a graph, activations live for one block, so the peak is that of the largest block: it
    falls only if tokens are dropped before the first one (stage 0). With a graph (``eval()``
    without ``torch.no_grad()``) all blocks' activations stay, and every dropped token shows.

    Args:
        model: the network.
        batch_size: images in the batch.
        precision: a key of :data:`PRECISIONS`.
        image_size: see :func:`bench`.
        threads: see :func:`bench`.
        graph: keep the activations for a backward pass.

    Raises:
        InputError: for a value that can't be, or a network that can't be pickled (a lambda as its
            sampler, for one).
        RuntimeError: if the measuring process dies, of too little memory for one.
    """
    threads = available_cores() if threads is None else threads
    _check_plan([batch_size], [precision], threads)
    _check_weights(model)
    height, width = resolve_image_size(model, image_size)
    job = {
        "shape": (batch_size, model.in_chans, height, width),
        "precision": precision,
        "threads": threads,
        "graph": graph,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        try:
            torch.save(meta_copy(model).eval(), file)
        except (AttributeError, TypeError, ValueError) as error:  # what pickle raises
            raise InputError(
                f"the model can't be handed to a process of its own: {error}"
            ) from None
        dense, pruned = (_peak_in_process(file, job, part) for part in ("dense", "pruned"))
    return MemoryRow(batch_size, precision, graph, dense, pruned)


def _peak_in_process(file: Path, job: dict[str, Any], part: str) -> Peak:
    code = "from dynamicvit.benchmark import _measure_peak; _measure_peak()"
    arguments = json.dumps({**job, "file": str(file), "part": part})
    done = subprocess.run(
        [sys.executable, "-c", code], input=arguments, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"measuring the memory of {part} inference failed: {reason}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def _measure_peak() -> None:
    """What the measuring process does: reads its job from standard input, prints a ``Peak``."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    # The parent has written this file; its tensors have shapes only.
    model: DynamicViT = torch.load(job["file"], weights_only=False)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()  # memory counts once it is written to
    network = DenseNetwork(model) if job["part"] == "dense" else model
    images = torch.zeros(job["shape"])
    dtype = PRECISIONS[job["precision"]]
    before = peak_resident_memory()
    with (
        torch.set_grad_enabled(job["graph"]),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        output = network(images)
    after = peak_resident_memory()
    del output
    print(json.dumps({"total": after, "inference": after - before}))


def peak_resident_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    try:
        # On Linux ru_maxrss of a new process starts at its parent's peak; VmHWM at its own.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        raise RuntimeError("peak memory can't be measured on Windows")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -------------------------------------------------------------------------------- the machine


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


# -------------------------------------------------------------------------------- inside


def _check_plan(
    batch_sizes: Sequence[int],
    precisions: Sequence[str],
    threads: int,
    seconds: float = 1.0,
    samples: int | None = None,
) -> None:
    for size in batch_sizes:
        if size < 1:
            raise InputError(f"a batch size is at least 1, got {size}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"a precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not batch_sizes or not precisions:
        raise InputError("nothing to measure: give at least one batch size and one precision")
    if threads < 1:
        raise InputError(f"threads are at least 1, got {threads}")
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds are positive, got {seconds}")
    if samples is not None and samples < 2:
        raise InputError(f"a spread needs at least 2 samples, got {samples}")


def _check_weights(model: nn.Module) -> None:
    """Refuse weights whose precision a row would then name wrongly."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}, but precisions are compared from float32 weights "
                f"(bf16 under autocast): call model.float() first"
            )
