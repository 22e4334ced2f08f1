"""One ConvNeXt block with half of its positions on the cheap path: gathered, or both everywhere.

    python benchmarks/one_block.py [SECONDS]

Processor time of one thread, all forms in turn; times as fast as the dense block, by medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch

from dynamicvit import sparsify
from dynamicvit.layers.maps import Map

#: Channels, positions along a side, images.
SIZES = ((64, 6, 1), (64, 6, 8), (64, 6, 32), (192, 7, 1), (384, 14, 1), (384, 14, 8))


def forms(width: int, side: int, batch: int) -> dict[str, Callable[[], object]]:
    """The block as timm has it, and as the pruned and the masked path have it."""
    dims = (8, 8, width, 8)
    network = timm.create_model("convnext_tiny", depths=(1, 1, 2, 1), dims=dims)
    model = sparsify(network, [0.5], stages=[1]).eval()
    bound, method = model.bound, model.methods[0]
    start = bound.run(0, bound.embed(torch.randn(batch, 3, 16 * side, 16 * side)))
    kept = torch.rand(start.x.shape[:2]).argsort(dim=1)[:, : side * side // 2].sort(dim=1).values
    decision = torch.zeros(start.x.shape[:2]).scatter(1, kept, 1.0)
    gathered = method.prune_to(start, kept)
    both = start.masked(decision, method.cheap)

    def run(tokens: Map) -> Callable[[], object]:
        return lambda: bound.run(1, tokens)

    return {"dense": run(start), "gathered": run(gathered), "both everywhere": run(both)}


@torch.inference_mode()
def main() -> None:
    """Print one line for each size."""
    torch.set_num_threads(1)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    for width, side, batch in SIZES:
        found = forms(width, side, batch)
        times: dict[str, list[float]] = {name: [] for name in found}
        for run in found.values():
            run()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, run in found.items():
                began = time.process_time()
                run()
                times[name].append(time.process_time() - began)
        medians = {name: statistics.median(each) for name, each in times.items()}
        dense = medians.pop("dense")
        rest = ", ".join(f"{name} {dense / each:.2f}" for name, each in medians.items())
        print(f"{width} x {side * side}, {batch} images: dense {1e3 * dense:.2f} ms, {rest}")


if __name__ == "__main__":
    main()
