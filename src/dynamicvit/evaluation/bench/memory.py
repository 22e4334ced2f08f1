"""Peak memory of inference, each network in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.costs import ImageSize, meta_copy, resolve_image_size
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.machine import available_cores
from dynamicvit.evaluation.bench.plan import check_plan, check_weights, settings_of
from dynamicvit.evaluation.bench.runtimes import RUNTIMES, Exported, Job
from dynamicvit.evaluation.bench.runtimes.exported import load, run_file
from dynamicvit.evaluation.bench.timer import AUTOCAST
from dynamicvit.export import is_exported

#: Runtimes whose memory is measured: the compiler's own would hide that of what it compiles.
MEASURED = tuple(
    name for name, each in RUNTIMES.items() if name == "eager" or isinstance(each, Exported)
)


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
        precision: as for :func:`~dynamicvit.evaluation.bench.bench`.
        graph: whether the activations were kept for a backward pass.
        dense: the backbone's own inference.
        pruned: the pruned path.
        runtime: "eager", or one that runs exported files.
    """

    batch_size: int
    precision: str
    graph: bool
    dense: Peak
    pruned: Peak
    runtime: str = "eager"


def peak_memory(
    model: DynamicViT,
    batch_size: int = 32,
    *,
    precision: str = "fp32",
    image_size: ImageSize = None,
    threads: int | None = None,
    graph: bool = False,
    runtime: str = "eager",
) -> MemoryRow:
    """Peak host memory of dense and of pruned inference, each in a process of its own, on the CPU.

    In eager mode only the model's shapes are handed over: memory does not depend on the weights.

    Without a graph, activations live for one block, so the peak is that of the largest block: it
    falls only if tokens are dropped before the first one (stage 0). With a graph (``eval()``
    without ``torch.no_grad()``) all blocks' activations stay, and every dropped token shows.

    Args:
        model: the network.
        batch_size: images in the batch.
        precision: as for :func:`~dynamicvit.evaluation.bench.bench`.
        image_size: see :func:`~dynamicvit.evaluation.bench.bench`.
        threads: see :func:`~dynamicvit.evaluation.bench.bench`.
        graph: keep the activations for a backward pass.
        runtime: "eager", or one that runs exported files.

    Raises:
        InputError: for a value that can't be, a package that is missing, a runtime whose memory is
            not measured, or a network that can't be pickled (a lambda as its sampler, for one).
        ExportMismatchError: if an exported file does not do what the model does.
        RuntimeError: if the measuring process dies, of too little memory for one.
    """
    threads = available_cores() if threads is None else threads
    check_plan([batch_size], threads)
    check_weights(model)
    settings_of([runtime], [precision], next(model.parameters()).device.type)
    way = RUNTIMES[runtime]
    if runtime not in MEASURED:
        raise InputError(f"memory is measured in {', '.join(MEASURED)}, not in {runtime}")
    if graph and runtime != "eager":
        raise InputError(f"{runtime} keeps no graph: measure it in eager mode")
    way.check(precision)
    shape = (batch_size, model.in_chans, *resolve_image_size(model, image_size))
    job = {"shape": shape, "precision": precision, "threads": threads, "graph": graph}
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(way, Exported):
            images = torch.zeros(shape)
            networks = {"dense": way.dense(model), "pruned": model}
            files = {
                part: way.write(Job(network, part, images, precision, Path(folder)))
                for part, network in networks.items()
            }
        else:
            files = dict.fromkeys(("dense", "pruned"), _shapes(model, Path(folder)))
        peaks = {part: _peak_in_process(file, job, part) for part, file in files.items()}
    return MemoryRow(batch_size, precision, graph, peaks["dense"], peaks["pruned"], runtime)


def _shapes(model: DynamicViT, folder: Path) -> Path:
    """A file of the model without its weights."""
    file = folder / "model.pt"
    try:
        torch.save(meta_copy(model).eval(), file)
    except (AttributeError, TypeError, ValueError) as error:  # what pickle raises
        raise InputError(f"the model can't be handed to a process of its own: {error}") from None
    return file


def _peak_in_process(file: Path, job: dict[str, Any], part: str) -> Peak:
    code = "from dynamicvit.evaluation.bench.memory import _measure_peak; _measure_peak()"
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
    images = torch.zeros(job["shape"])
    if is_exported(job["file"]):
        exported = load(Path(job["file"]), job["precision"])
        run = partial(run_file, exported, images)
    else:
        run = partial(_run_eager, _filled(job["file"], job["part"]), images, job)
    before = peak_resident_memory()
    output = run()
    after = peak_resident_memory()
    del output
    print(json.dumps({"total": after, "inference": after - before}))


def _filled(file: str, part: str) -> nn.Module:
    # The parent has written this file; its tensors have shapes only.
    model: DynamicViT = torch.load(file, weights_only=False)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()  # memory counts once it is written to
    return DenseNetwork(model) if part == "dense" else model


def _run_eager(network: nn.Module, images: Tensor, job: dict[str, Any]) -> Tensor:
    dtype = AUTOCAST[job["precision"]]
    with (
        torch.set_grad_enabled(job["graph"]),
        torch.autocast("cpu", dtype=dtype, enabled=dtype is not None),
    ):
        return network(images)


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
