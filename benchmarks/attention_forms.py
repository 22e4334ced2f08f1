"""The forms of attention under a decision, timed: a table of docs/notebook/training-step.md.

::

    python benchmarks/attention_forms.py

Everything is timed in turn in one run on one core, in CPU time, so that other programs on the
machine don't count; with ``--device cuda`` by the clock. The numbers in the tensors don't matter
for the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dynamicvit.layers import attention, masked_attention
from dynamicvit.layers.attention import softmax_attention
from dynamicvit.layers.masked_attention import explicit_attention, fused_attention

#: DeiT-Tiny's heads, the side of its patches, and the share of them that decisions keep.
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
    with patch.object(masked_attention, "fused_form_fits", _answer(fused, "fused_form_fits")):
        if products is None:
            yield
            return
        with patch.object(attention, "products_beat_the_kernel", lambda query: products):
            yield


def _answer(value: bool | None, name: str) -> Callable[..., bool]:
    return getattr(masked_attention, name) if value is None else lambda *_, **__: value


def seconds(run: Callable[[], object], device: str) -> float:
    """How long one run takes."""
    if device == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def in_turn(runs: Runs, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, one after the other, in rounds; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds(run, device)
            if turn:
                times[name].append(taken)
    return times


def attention_runs(pixels: int, batch: int, dtype: torch.dtype, device: str) -> Runs:
    """Forward and backward pass of one block's attention, heads as its linear layer gives them."""
    tokens = (pixels // PATCH) ** 2 + 1
    qkv = torch.randn(batch, tokens, 3, HEADS, WIDTH, device=device, dtype=dtype)
    decision = (torch.rand(batch, tokens, device=device) < KEPT).float()
    decision[:, 0] = 1.0
    slope = torch.randn(batch, HEADS, tokens, WIDTH, device=device, dtype=dtype)

    def run(function: Callable[..., Tensor], name: str, *given: Tensor) -> None:
        leaves = [tensor.clone().requires_grad_() for tensor in (qkv, *given)]
        heads = leaves[0].permute(2, 0, 3, 1, 4).unbind(0)
        with form(name):
            function(*heads, *leaves[1:]).backward(slope)

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
    return table


def arguments() -> argparse.Namespace:
    """Of the command line; the CPU gets one thread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5, help="timed ones, after one to warm up")
    parser.add_argument("--quick", action="store_true", help="small batches: does it run at all")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)  # of training_step.py
    torch.set_num_threads(1)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    given = arguments()
    settings = [(224, 2)] if given.quick else [(224, 8), (224, 64), (384, 8), (384, 32)]
    Console(width=120).print(attention_table(settings, given.rounds, given.device))


if __name__ == "__main__":
    main()
