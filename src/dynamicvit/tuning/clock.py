"""Seconds of schedules on this machine, predicted from parts and measured whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import segments
from dynamicvit.evaluation.bench import Setting, processor_name
from dynamicvit.runtimes.base import without_stages
from dynamicvit.tuning.block_times import (
    Progress,
    measure_parts,
    measure_whole,
    measured_apart,
    time_networks,
)
from dynamicvit.tuning.judge import Judge
from dynamicvit.tuning.price import Parts, price_in_seconds
from dynamicvit.tuning.space import Counts


@dataclass
class Clock:
    """Times a model in one setting; what was timed once is remembered.

    Attributes:
        model: whose blocks and stages are timed.
        judge: that makes models with other schedules, and whose notebook remembers.
        noise: the batch, ``(B, channels, height, width)``.
        setting: runtime and precision.
        threads: CPU threads.
        seconds: to measure for, each time.
        progress: called now and then.
        dense: seconds of the dense network, once :meth:`price` was asked for.
    """

    model: DynamicViT
    judge: Judge
    noise: Tensor
    setting: Setting
    threads: int
    seconds: float
    progress: Progress | None = None
    dense: float = 0.0

    def price(self) -> Parts:
        """The seconds of any schedule, by parts; scaled so that the model's own is right."""
        # The last block of a classifier runs for what the head reads; a map needs every patch.
        apart = measured_apart(self.setting) and not segments(self.model)
        measure = measure_parts if apart else measure_whole
        times = self._remembered(
            "parts",
            lambda: measure(
                self.model, self.noise, self.setting, self.threads, self.seconds, self.progress
            ),
        )
        own = self.judge.space.counts_of(self.model.schedule)
        whole = self._timed(own)
        self.dense = whole["dense"]
        by_parts = price_in_seconds(self.judge.space, times)(own)
        return price_in_seconds(self.judge.space, times, whole["pruned"] / by_parts)

    def measured(self, counts: Counts) -> float:
        """Seconds of a schedule, as a multiple of the dense network's in the same rounds.

        So a machine that has become slower since then does not count.
        """
        times = self._timed(counts)
        return times["pruned"] / times["dense"] * self.dense

    def _timed(self, counts: Counts) -> dict[str, float]:
        networks = {"dense": without_stages(self.model), "pruned": self.judge.network(counts)}
        return self._remembered(
            ",".join(map(str, counts)),
            lambda: time_networks(
                networks, self.noise, self.setting, self.threads, self.seconds, self.progress
            ),
        )

    def _remembered(self, what: str, measure: Callable[[], Any]) -> Any:
        device = self.noise.device.type
        key = (
            f"{what}, {' '.join(self.setting)}, batch {len(self.noise)}, {self.threads} threads, "
            f"{processor_name(device)}"
        )
        times = self.judge.notebook.times
        if key not in times:
            times[key] = measure()
            self.judge.notebook.save()
        return times[key]
