"""What attention under a decision and a whole training step cost: the table of docs/results.md.

::

    python benchmarks/training_step.py

Everything is timed in turn in one run on one core, in CPU time, so that other programs on the
machine don't count; with ``--device cuda`` by the clock. Weights and images are noise: neither
matters for the time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dynamicvit.attention
from dynamicvit import DynamicViT, sparsify
from dynamicvit.attention import explicit_attention, fused_attention, softmax_attention, undecided
from dynamicvit.benchmark import peak_resident_memory
from dynamicvit.losses import dynamicvit_loss
from dynamicvit.teacher import ask, dense_teacher

MODEL, CLASSES = "deit_tiny_patch16_224", 1000
HEADS, WIDTH, PATCH = 3, 64, 16
KEPT = 0.7
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

Runs = dict[str, Callable[[], object]]
"""What is timed, by name."""

#: Name of a form: whether it is the fused one, and whether it multiplies matrices (else a kernel
#: does it). ``None``: as dynamicvit chooses.
FORMS: dict[str, tuple[bool | None, bool | None]] = {
    "explicit": (False, None),
    "fused, kernel": (True, False),
    "fused, products": (True, True),
    "as chosen": (None, None),
}


@contextmanager
def form(name: str) -> Iterator[None]:
    """Attention in a form of :data:`FORMS`, whatever its size."""
    fused, products = FORMS[name]
    with patch.object(dynamicvit.attention, "fused_form_fits", _answer(fused, "fused_form_fits")):
        if products is None:
            yield
            return
        with patch.object(undecided, "products_beat_the_kernel", lambda query: products):
            yield


def _answer(value: bool | None, name: str) -> Callable[..., bool]:
    return getattr(dynamicvit.attention, name) if value is None else lambda *_, **__: value


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one run."""
    if device == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(
    runs: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds of each, one after the other, in rounds; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run, device)
            if turn:
                times[name].append(taken)
    return times


# ---------------------------------------------------------------- attention


def attention_runs(pixels: int, batch: int, dtype: torch.dtype, device: str) -> Runs:
    """Forward and backward pass of one block's attention, heads as its linear layer gives them."""
    tokens = (pixels // PATCH) ** 2 + 1
    qkv = torch.randn(batch, tokens, 3, HEADS, WIDTH, device=device, dtype=dtype)
    decision = (torch.rand(batch, tokens, device=device) < KEPT).float()
    decision[:, 0] = 1.0
    slope = torch.randn(batch, HEADS, tokens, WIDTH, device=device, dtype=dtype)

    def run(attention: Callable[..., Tensor], name: str, *given: Tensor) -> None:
        leaves = [tensor.clone().requires_grad_() for tensor in (qkv, *given)]
        heads = leaves[0].permute(2, 0, 3, 1, 4).unbind(0)
        name = (
            "as chosen" if products is None else "fused, products" if products else "fused, kernel"
        )
        with form(name):
            attention(*heads, *leaves[1:]).backward(slope)

    return {
        "no decision, kernel": lambda: run(softmax_attention, "fused, kernel"),
        "no decision, products": lambda: run(softmax_attention, "fused, products"),
        "explicit": lambda: run(explicit_attention, "explicit", decision),
        "fused, kernel": lambda: run(fused_attention, "fused, kernel", decision),
        "fused, products": lambda: run(fused_attention, "fused, products", decision),
    }


def attention_table(settings: list[tuple[int, int]], rounds: int, device: str) -> Table:
    """Milliseconds of each form at each image size, batch size and precision."""
    table = Table("px", "batch", "precision", title="attention, forward and backward, ms")
    for pixels, batch in settings:
        for precision, dtype in PRECISIONS.items():
            torch.manual_seed(0)
            times = in_turn(attention_runs(pixels, batch, dtype, device), rounds, device)
            if len(table.columns) == 3:
                for name in times:
                    table.add_column(name, justify="right")
            cells = (f"{1e3 * median(sample):.0f}" for sample in times.values())
            table.add_row(str(pixels), str(batch), precision, *cells)
            print(pixels, batch, precision, "done", file=sys.stderr)
    return table


# ---------------------------------------------------------------- training steps


def dense_network(pixels: int, device: str) -> nn.Module:
    """timm's, with random weights."""
    return timm.create_model(MODEL, img_size=pixels, num_classes=CLASSES).to(device)


class Step:
    """Training steps of timm's dense network, and of the sparsified one with its teacher."""

    def __init__(self, pixels: int, batch: int, precision: str, device: str) -> None:
        torch.manual_seed(0)
        self.images = torch.randn(batch, 3, pixels, pixels, device=device)
        self.labels = torch.randint(0, CLASSES, (batch,), device=device)
        dtype = PRECISIONS[precision]
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
        self.dense = dense_network(pixels, device).train()
        self.model: DynamicViT = sparsify(dense_network(pixels, device), KEPT).to(device).train()
        self.teacher = dense_teacher(self.model)
        self.optimizers = {
            id(network): torch.optim.AdamW(network.parameters(), lr=1e-5)
            for network in (self.dense, self.model)
        }

    def run_dense(self) -> None:
        """Cross-entropy of timm's own network."""
        with self.autocast:
            loss = F.cross_entropy(self.dense(self.images), self.labels)
        self._update(self.dense, loss)

    def run_dense_here(self) -> None:
        """The same through this library's attention."""
        with self.autocast:
            loss = F.cross_entropy(self.model.forward_dense(self.images).logits, self.labels)
        self._update(self.model, loss)

    def run_teacher(self) -> None:
        """The teacher's part of a step."""
        with self.autocast:
            ask(self.teacher, self.images)

    def run(self) -> None:
        """Teacher, student under its decisions, the paper's losses, update."""
        with self.autocast:
            taught = ask(self.teacher, self.images)
            output = self.model.forward_masked(self.images)
            losses = dynamicvit_loss(
                output, self.model.schedule.keep_ratios, labels=self.labels, teacher=taught
            )
        self._update(self.model, losses.total)

    def run_form(self, name: str) -> None:
        """:meth:`run` with attention in a form of :data:`FORMS`."""
        with form(name):
            self.run()

    def _update(self, network: nn.Module, loss: Tensor) -> None:
        optimizer = self.optimizers[id(network)]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def step_table(settings: list[tuple[int, int, str]], rounds: int, device: str) -> Table:
    """Seconds of each kind of step, and times the dense step."""
    table = Table("px", "batch", "precision", "step", "s", "times dense", title="training step")
    for pixels, batch, precision in settings:
        step = Step(pixels, batch, precision, device)
        runs: Runs = {
            "timm's, dense": step.run_dense,
            "dense, attention as here": step.run_dense_here,
            "teacher alone": step.run_teacher,
            "with decisions, explicit": lambda step=step: step.run_form("explicit"),
            "with decisions, as chosen": lambda step=step: step.run_form("as chosen"),
        }
        times = in_turn(runs, rounds, device)
        dense = times["timm's, dense"]
        for name, sample in times.items():
            ratio = median(mine / theirs for mine, theirs in zip(sample, dense, strict=True))
            row = (str(pixels), str(batch), precision, name, f"{median(sample):.2f}")
            table.add_row(*row, f"{ratio:.2f}")
        print(pixels, batch, precision, "done", file=sys.stderr)
    return table


# ---------------------------------------------------------------- memory


def peak_mib(name: str, pixels: int, batch: int, precision: str, device: str) -> float:
    """MiB by which one training step raises the peak, in a process that has done nothing else."""
    step = Step(pixels, batch, precision, device)
    peak = peak_resident_memory if device == "cpu" else torch.cuda.max_memory_allocated
    before = peak()
    step.run_form(name)
    return (peak() - before) / 2**20


def memory_table(settings: list[tuple[int, int, str]], device: str) -> Table:
    """Peak memory of a training step, each in a process of its own."""
    table = Table("px", "batch", "precision", title="peak memory of a training step, MiB")
    forms = [name for name in FORMS if name != "as chosen"]
    for name in forms:
        table.add_column(name, justify="right")
    for pixels, batch, precision in settings:
        cells = []
        for name in forms:
            job = [name, str(pixels), str(batch), precision]
            command = [sys.executable, __file__, "--device", device, "--peak", *job]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cells.append(f"{float(done.stdout.split()[-1]):.0f}")
        table.add_row(str(pixels), str(batch), precision, *cells)
    return table


def main() -> None:
    """Print the three tables, or in a process of its own one peak."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, help="of each table, after one to warm up")
    parser.add_argument("--quick", action="store_true", help="small batches: does it run at all")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, rounds = arguments.device, arguments.rounds
    if device == "cpu":
        torch.set_num_threads(1)
    if arguments.peak:
        name, pixels, batch, precision = arguments.peak
        print(peak_mib(name, int(pixels), int(batch), precision, device))
        return
    if arguments.quick:
        attention, steps, memory = [(224, 2)], [(224, 2, "bf16")], [(224, 2, "bf16")]
    else:
        attention = [(224, 8), (224, 64), (384, 8), (384, 64)]
        steps = [(224, 64, "bf16"), (224, 64, "fp32"), (384, 16, "bf16")]
        memory = [(384, 16, "fp32"), (384, 16, "bf16"), (224, 64, "bf16")]
    console = Console(width=120)
    console.print(step_table(steps, rounds, device))
    console.print(attention_table(attention, rounds, device))
    console.print(memory_table(memory, device))


if __name__ == "__main__":
    main()
