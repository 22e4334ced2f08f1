"""A file for each budget, or one model in eager mode with a view of each: docs/serving.md.

::

    python benchmarks/files_or_views.py dense.xml 0.7.xml 0.5.xml --checkpoint FILE

Processor time of one thread for an image, so that others on the machine don't count; calls in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from dynamicvit import load_dense, sparsify
from dynamicvit.runtimes import load_exported


def networks(model: str, checkpoint: str | None, files: list[str]) -> dict[str, nn.Module]:
    """Each file, and the model's view at the keep ratio that the file's name is."""
    sparse = sparsify(load_dense(model, checkpoint, pretrained=False), 0.7).eval()
    found: dict[str, nn.Module] = {}
    for file in files:
        name = Path(file).stem
        found[f"eager {name}"] = sparse.backbone if name == "dense" else sparse.at(float(name))
        found[f"file {name}"] = load_exported(file)
    return found


@torch.inference_mode()
def main() -> None:
    """Print medians and quartiles."""
    parser = argparse.ArgumentParser(description="Files or views.")
    parser.add_argument("files", nargs="+", help="dense.xml, and others named by keep ratio")
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--checkpoint")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = networks(given.model, given.checkpoint, given.files)
    for batch in (1, 8):
        images = torch.randn(batch, 3, 224, 224)
        spent: dict[str, list[float]] = {name: [] for name in found}
        for number in range(given.rounds + 2):
            for name, network in found.items():
                start = time.process_time()
                network(images)
                if number >= 2:
                    spent[name].append(1000 * (time.process_time() - start) / batch)
        for name, times in spent.items():
            low, middle, high = statistics.quantiles(times, n=4)
            print(f"{batch} at once, {name}: {middle:.1f} [{low:.1f} to {high:.1f}] ms an image")


if __name__ == "__main__":
    main()
