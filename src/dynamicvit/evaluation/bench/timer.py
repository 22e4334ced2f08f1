"""Times pieces of work in turn: a machine's speed drifts by more than pruning gains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from dynamicvit.evaluation.bench.report import Times
from dynamicvit.runtimes.pytorch import infer
from dynamicvit.utils.optional import quiet

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

#: Fewer rounds say nothing about their spread.
MIN_ROUNDS = 5


def time_in_turn(
    work: Sequence[Callable[[], object]],
    threads: int,
    seconds: float,
    samples: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Times]:
    """Times of each piece of work, in the order of the work; each is timed once a round.

    A sample is one call after two untimed calls of the same work, so that the change from one
    network to the next is not measured. Every second round has the reverse order. All run once
    before the first round.

    Args:
        work: functions to time.
        threads: CPU threads of torch; other runtimes have their own.
        seconds: to measure for, at least :data:`MIN_ROUNDS` rounds.
        samples: number of rounds, in place of ``seconds``.
        progress: called with the share done after every round.
    """
    timers = [timer(each, threads) for each in work]
    for each in timers:
        each.timeit(1)
    rounds: list[list[float]] = []
    start = time.monotonic()
    share = 0.0
    while share < 1:
        # The second to run finds the machine warmer, or throttled: each is first half the time.
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
    """torch's timer of a PyTorch function at inference, on the device of its images."""
    return timer(partial(infer, work, images.device.type, precision), threads)


def timer(work: Callable[[], object], threads: int) -> Timer:
    """torch's timer of a function; it waits for the device."""
    return timer_class()("work()", globals={"work": work}, num_threads=threads)


def timer_class() -> type[Timer]:
    """torch's timer, imported late and quietly: it logs that there is no compiler of CUDA's."""
    with quiet("torch.utils.cpp_extension"):
        from torch.utils.benchmark import Timer
    return Timer
