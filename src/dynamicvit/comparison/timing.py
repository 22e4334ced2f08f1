"""How much faster a method is, and what its stages themselves take of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode
from dynamicvit.evaluation.bench import bench, timer_of
from dynamicvit.layers.tokens import Tokens

BATCH_SIZES = (1, 32)

#: Repetitions of a stage's work, whose mean is taken.
_REPEATS = 15


@dataclass(frozen=True)
class Timing:
    """A method against the dense network at one batch size.

    Attributes:
        batch_size: images in a batch.
        speedup: throughput over the dense network's, median of pairs timed in turn.
        low: the lower quartile.
        high: the upper quartile.
        dense_ms: of a dense batch.
        ms: of a batch with it.
        choosing_ms: of that, what its stages take: prediction modules, attention row or matching,
            with gathering or merging.
        choosing_share: that, of the time that would be saved if the stages took none; ``None``
            where nothing would.
    """

    batch_size: int
    speedup: float
    low: float
    high: float
    dense_ms: float
    ms: float
    choosing_ms: float
    choosing_share: float | None


def time_method(
    model: DynamicViT,
    dense: nn.Module,
    *,
    precision: str,
    threads: int,
    seconds: float,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
) -> list[Timing]:
    """Time a model and the dense network in turn, and the model's stages by themselves.

    Args:
        model: at its budget, on the device to measure.
        dense: the network that it is compared with.
        precision: a key of :data:`~dynamicvit.utils.precision.AUTOCAST`.
        threads: CPU threads.
        seconds: for each batch size.
        batch_sizes: images in a batch.
    """
    rows = bench(
        model,
        dense=dense,
        batch_sizes=batch_sizes,
        precisions=(precision,),
        threads=threads,
        seconds=seconds,
        reference=False,
    )
    timings = []
    for row in rows:
        stages = 1e3 * stage_seconds(model, row.batch_size, precision, threads)
        whole, ms = 1e3 * row.dense_seconds.median, 1e3 * row.pruned_seconds.median
        saved = whole - ms + stages
        timings.append(
            Timing(
                batch_size=row.batch_size,
                speedup=row.speedup.median,
                low=row.speedup.low,
                high=row.speedup.high,
                dense_ms=whole,
                ms=ms,
                choosing_ms=stages,
                choosing_share=stages / saved if saved > 0 else None,
            )
        )
    return timings


def stage_seconds(model: DynamicViT, batch_size: int, precision: str, threads: int) -> float:
    """Seconds that the stages of a batch take, on the very tokens that come to them."""
    device = next(model.parameters()).device
    shape = (batch_size, *model.bound.input_shape())
    images = torch.randn(shape, device=device)
    work: dict[int, Callable[[], object]] = {}

    def note(stage: int, tokens: Tokens, count: int) -> list[Tokens]:
        work[stage] = partial(model._prune, stage, tokens, count)
        return model._prune(stage, tokens, count)

    def run() -> object:
        return model._walk(model.first_blocks(images), note, model.depth)

    with eval_mode(model):
        timer_of(run, images, precision, threads).timeit(1)
        timers = (timer_of(stage, images, precision, threads) for stage in work.values())
        return sum(timer.timeit(_REPEATS).median for timer in timers)
