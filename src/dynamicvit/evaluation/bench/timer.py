"""Work timed in turn: a machine's speed drifts by more than a pruned network gains."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from dynamicvit.evaluation.bench.report import Times
from dynamicvit.runtimes.pytorch import infer

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

#: Fewer rounds say nothing about their spread, however long they take.
MIN_ROUNDS = 5


def time_in_turn(
    work: Sequence[Callable[[], object]],
    threads: int,
    seconds: float,
    samples: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Times]:
    """Time each piece of work once a round, until there are enough rounds.

    Every sample is one call, after two untimed ones of the same work, so that what is measured is
    a network at work and not the change between two. Every second round goes the other way round.
    Before the first, all have run once.

    Args:
        work: what is timed.
        threads: CPU threads of torch; other runtimes have theirs.
        seconds: how long to go on, but at least :data:`MIN_ROUNDS` rounds.
        samples: or how many rounds.
        progress: called with the share done after every round.

    Returns:
        The times, in the order of the work.
    """
    timers = [timer(each, threads) for each in work]
    for each in timers:
        each.timeit(1)
    rounds: list[list[float]] = []
    start = time.monotonic()
    share = 0.0
    while share < 1:
        # What runs second finds the machine warmer (or throttled): each is first half the time.
        order = range(len(timers)) if len(rounds) % 2 == 0 else reversed(range(len(timers)))
        taken = {index: timers[index].timeit(1).median for index in order}
        rounds.append([taken[index] for index in range(len(timers))])
        share = (
            len(rounds) / samples
            if samples is not None
            else min((time.monotonic() - start) / seconds, len(rounds) / MIN_ROUNDS)
        )
        if progress is not None:
            progress(min(share, 1.0))
    return [Times(column) for column in zip(*rounds, strict=True)]


def timer_of(work: Callable[[], object], images: Tensor, precision: str, threads: int) -> Timer:
    """torch's timer of a function of PyTorch's at inference.

    Args:
        work: the function.
        images: those that it works on, for their device.
        precision: a key of :data:`~dynamicvit.utils.precision.AUTOCAST`.
        threads: CPU threads.
    """
    return timer(partial(infer, work, images.device.type, precision), threads)


def timer(work: Callable[[], object], threads: int) -> Timer:
    """torch's timer of a function, which waits for the device.

    Args:
        work: the function.
        threads: CPU threads of torch.
    """
    return timer_class()("work()", globals={"work": work}, num_threads=threads)


def timer_class() -> type[Timer]:
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
