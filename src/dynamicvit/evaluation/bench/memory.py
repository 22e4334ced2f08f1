"""Peak memory of inference, each network in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.costs import ImageSize, meta_copy, resolve_image_size
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.machine import available_cores, peak_resident_memory
from dynamicvit.evaluation.bench.plan import (
    check_plan,
    check_weights,
    load_file,
    network_file,
    settings_of,
)
from dynamicvit.evaluation.bench.report import MemoryRow, Peak
from dynamicvit.runtimes import FORMATS, RUNTIMES, Format
from dynamicvit.utils.files import temporary_folder
from dynamicvit.utils.precision import autocast, autocast_dtype

#: Runtimes whose memory is measured; torch.compile's own memory would hide the network's.
MEASURED = ("eager", *FORMATS)


def peak_memory(
    model: DynamicViT,
    batch_size: int = 32,
    *,
    precision: str = "fp32",
    image_size: ImageSize = None,
    threads: int | None = None,
    graph: bool = False,
    runtime: str = "eager",
    folder: Path | None = None,
) -> MemoryRow:
    """Peak host memory of dense and of pruned inference on the CPU, each in its own process.

    In eager mode the process gets the model's shapes only: memory does not depend on the weights.

    Without a graph, activations live for one block, so the peak is that of the largest block: it
    falls only if tokens are dropped before the first one (stage 0). With a graph (``eval()``
    without ``torch.no_grad()``) the activations of all blocks stay, and every dropped token counts.

    Args:
        model: the network.
        batch_size: images in the batch.
        precision: see :func:`~dynamicvit.evaluation.bench.bench`.
        image_size: see :func:`~dynamicvit.evaluation.bench.bench`.
        threads: see :func:`~dynamicvit.evaluation.bench.bench`.
        graph: keep the activations for a backward pass.
        runtime: of :data:`MEASURED`.
        folder: where a benchmark has written the files of these networks; by default they are
            written for this alone.

    Raises:
        InputError: for a value that can't be used, a missing package, or a network that can't be
            pickled.
        ExportMismatchError: if an exported file does not do what the model does.
        RuntimeError: if the process fails, for example from too little memory.
    """
    threads = available_cores() if threads is None else threads
    check_plan([batch_size], threads)
    check_weights(model)
    settings_of([runtime], [precision], next(model.parameters()).device.type)
    runs = RUNTIMES[runtime]
    if runtime not in MEASURED:
        raise InputError(f"runtime {runtime}: memory is measured in {', '.join(MEASURED)}")
    if graph and runtime != "eager":
        raise InputError(f"{runtime} keeps no graph: measure it in eager mode")
    runs.ready(precision)
    size = resolve_image_size(model, image_size)
    job = {
        "shape": (batch_size, *model.bound.input_shape(size)),
        "runtime": runtime,
        "precision": precision,
        "threads": threads,
        "graph": graph,
    }
    with nullcontext(folder) if folder else temporary_folder() as place:
        if isinstance(runs, Format):
            networks = {"dense": runs.dense(model), "pruned": model}
            files = {
                part: network_file(network, part, runs, precision, size, place)
                for part, network in networks.items()
            }
        else:
            files = dict.fromkeys(("dense", "pruned"), _shapes(model, place))
        peaks = {part: _peak_in_process(file, job, part) for part, file in files.items()}
    return MemoryRow(batch_size, precision, graph, peaks["dense"], peaks["pruned"], runtime)


def _shapes(model: DynamicViT, folder: Path) -> Path:
    """A file of the model without its weights."""
    file = folder / "model.pt"
    try:
        torch.save(meta_copy(model).eval(), file)
    except (AttributeError, TypeError, ValueError) as error:  # what pickle raises
        raise InputError(f"the model can't be pickled for another process: {error}") from None
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
    """The measuring process: reads its job from standard input, prints a ``Peak``."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    images = torch.zeros(job["shape"])
    runs = RUNTIMES[job["runtime"]]
    if isinstance(runs, Format):
        exported = load_file(Path(job["file"]), runs, job["precision"])
        run = runs.prepare(exported, images, job["precision"])
    else:
        network, dtype = _filled(job["file"], job["part"]), autocast_dtype(job["precision"])

        def run() -> object:
            with torch.set_grad_enabled(job["graph"]), autocast("cpu", dtype):
                return network(images)

    before = peak_resident_memory()
    output = run()
    after = peak_resident_memory()
    del output
    print(json.dumps({"total": after, "inference": after - before}))


def _filled(file: str, part: str) -> nn.Module:
    model: DynamicViT = torch.load(file, weights_only=False)  # written by the parent process
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().zero_()  # only written memory counts
    return DenseNetwork(model) if part == "dense" else model
