"""What a training step costs, against timm's dense one: a table of docs/notebook/training-step.md.

::

    python benchmarks/training_step.py

Timed as in ``attention_forms.py``; the peaks of memory are of processes of their own. Weights and
images are noise: neither matters for the time.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

import timm
import torch
import torch.nn.functional as F
from attention_forms import FORMS, KEPT, PRECISIONS, Runs, arguments, form, in_turn
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dynamicvit import DynamicViT, sparsify
from dynamicvit.core.teacher import ask
from dynamicvit.evaluation.bench import peak_resident_memory
from dynamicvit.training import TrainingObjective

MODEL, CLASSES = "deit_tiny_patch16_224", 1000


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
        model = sparsify(dense_network(pixels, device), KEPT, policy="removed", method="dynamicvit")
        self.model: DynamicViT = model.to(device).train()
        self.objective = TrainingObjective(self.model)
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
            ask(self.objective.dense_teacher, self.images)

    def run(self) -> None:
        """Teacher, student under its decisions, the paper's losses, update."""
        with self.autocast:
            losses = self.objective(self.images, self.labels)
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


def step_table(pixels: int, batch: int, precision: str, rounds: int, device: str) -> Table:
    """Seconds of each kind of step, and times the dense step."""
    title = f"training step, {pixels} px, batch {batch}, {precision}"
    table = Table("step", "s", "times dense", title=title)
    step = Step(pixels, batch, precision, device)
    runs: Runs = {
        "timm's, dense": step.run_dense,
        "dense, attention as here": step.run_dense_here,
        "teacher alone": step.run_teacher,
        "with decisions, explicit": lambda: step.run_form("explicit"),
        "with decisions, as chosen": lambda: step.run_form("as chosen"),
    }
    times = in_turn(runs, rounds, device)
    dense = times["timm's, dense"]
    for name, sample in times.items():
        ratio = median(mine / theirs for mine, theirs in zip(sample, dense, strict=True))
        table.add_row(name, f"{median(sample):.2f}", f"{ratio:.2f}")
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
    """Print the tables, or in a process of its own one peak."""
    given = arguments()
    if given.peak:
        name, pixels, batch, precision = given.peak
        print(peak_mib(name, int(pixels), int(batch), precision, given.device))
        return
    steps = [(224, 64, "bf16"), (384, 16, "bf16")]
    memory = [(384, 8, "fp32"), (384, 8, "bf16")]
    if given.quick:
        steps = memory = [(224, 2, "bf16")]
    console = Console(width=120)
    for setting in steps:
        console.print(step_table(*setting, given.rounds, given.device))
    console.print(memory_table(memory, given.device))


if __name__ == "__main__":
    main()
