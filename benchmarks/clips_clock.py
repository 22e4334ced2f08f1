"""How much of the MACs ratio the clock shows for clips: docs/results.md.

::

    python benchmarks/clips_clock.py [--model runs/dense] [--macs 0.6 --macs 0.45] [--method tome]

By default of VideoMAE-S's shape, whose 16 frames of 224 px are 1568 tokens, with random weights: no
time depends on them. Clips are random too. The dense network and all methods are timed in turn.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dynamicvit import load
from dynamicvit.costs import DENSE, schedule_macs
from dynamicvit.errors import UntrainedWarning
from dynamicvit.evaluation.bench import time_in_turn
from dynamicvit.methods import at_macs
from dynamicvit.utils.optional import need

METHODS = ["dynamicvit", "lookahead"]


def videomae(frames: int = 16, size: int = 224) -> nn.Module:
    """VideoMAE-S for 400 classes, with random weights."""
    transformers = need("transformers", "transformers")
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    config = transformers.VideoMAEConfig(
        num_frames=frames, image_size=size, num_labels=400, use_mean_pooling=True, **small
    )
    return transformers.VideoMAEForVideoClassification(config).eval()


@torch.inference_mode()
def clock(
    backbone: nn.Module,
    methods: list[str],
    budgets: list[float],
    batches: list[int],
    threads: int,
    rounds: int,
) -> Table:
    """Milliseconds, and the share of the MACs ratio that they show; all methods merge.

    Args:
        backbone: of clips.
        methods: their names.
        budgets: shares of its MACs.
        batches: clips in a batch.
        threads: of the processor.
        rounds: of timing.
    """
    models = {
        f"{name} {budget}": at_macs(name, backbone, budget, policy="merged").eval()
        for budget in budgets
        for name in methods
    }
    dense = next(iter(models.values()))
    shape = dense.bound.input_shape(None)
    macs = {"dense": schedule_macs(dense, DENSE)}
    macs |= {name: schedule_macs(model, model.schedule) for name, model in models.items()}
    table = Table("clips", "", "GMACs", "ms a clip", "times as fast", "share of the MACs ratio")
    for batch in batches:
        clips = torch.randn(batch, *shape)
        work = [partial(network, clips) for network in (dense.dense, *models.values())]
        times = time_in_turn(work, threads, seconds=0, samples=rounds)
        for name, taken in zip(macs, times, strict=True):
            ratio = times[0].over(taken)
            table.add_row(
                str(batch),
                name,
                f"{macs[name] / 1e9:.2f}",
                f"{1e3 * taken.spread.median / batch:.0f}",
                f"{ratio.median:.2f} [{ratio.low:.2f} to {ratio.high:.2f}]",
                f"{100 * ratio.median * macs[name] / macs['dense']:.0f} %",
            )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="The clock of clips.")
    parser.add_argument("--model", help="saved folder")
    parser.add_argument("--method", action="append")
    parser.add_argument("--macs", type=float, action="append")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore", UntrainedWarning)
    Console(width=100).print(
        clock(
            videomae() if given.model is None else load(given.model).eval(),
            given.method or METHODS,
            given.macs or [0.6, 0.45, 0.3],
            given.batch_size or [1, 4],
            given.threads,
            given.rounds,
        )
    )


if __name__ == "__main__":
    main()
