"""One line of the benchmark's table: a network dense and pruned, in one runtime and precision."""

from __future__ import annotations

from dataclasses import dataclass

from dynamicvit.evaluation.bench.times import Spread, Times


@dataclass(frozen=True)
class BenchRow:
    """Dense against pruned at one batch size, in one runtime and precision.

    Attributes:
        batch_size: images in a batch.
        runtime: a key of ``RUNTIMES``; of a file its format.
        precision: what it computed in.
        threads: CPU threads that all ran with.
        pruned: times of a pruned batch.
        dense: times of a dense batch in the same rounds; ``None`` for a file by itself.
        reference: times of the dense network in eager fp32, in the same rounds; ``None`` where it
            was not asked for.
        pruned_macs: of one image; ``None`` for a file.
        dense_macs: likewise, of the dense network of this row.
    """

    batch_size: int
    runtime: str
    precision: str
    threads: int
    pruned: Times
    dense: Times | None = None
    reference: Times | None = None
    pruned_macs: int | None = None
    dense_macs: int | None = None

    @property
    def pairs(self) -> int:
        """How many rounds were timed."""
        return len(self.pruned.seconds)

    @property
    def dense_seconds(self) -> Spread:
        """Of a dense batch."""
        return self._dense.spread

    @property
    def pruned_seconds(self) -> Spread:
        """Of a pruned batch."""
        return self.pruned.spread

    @property
    def speedup(self) -> Spread:
        """Dense over pruned time, round by round."""
        return self._dense.over(self.pruned)

    @property
    def conclusive(self) -> bool:
        """Whether the quartiles of the speed-up lie closer together than its median is to 1."""
        return self.speedup.conclusive

    @property
    def dense_throughput(self) -> float:
        """Images per second, from the median time."""
        return self.batch_size / self.dense_seconds.median

    @property
    def pruned_throughput(self) -> float:
        """Images per second, from the median time."""
        return self.batch_size / self.pruned_seconds.median

    @property
    def macs_ratio(self) -> float | None:
        """What the speed-up would be if time were MACs."""
        if self.dense_macs is None or self.pruned_macs is None:
            return None
        return self.dense_macs / self.pruned_macs

    @property
    def realized(self) -> float | None:
        """The share of :attr:`macs_ratio` that the clock shows."""
        return None if self.macs_ratio is None else self.speedup.median / self.macs_ratio

    @property
    def _dense(self) -> Times:
        if self.dense is None:
            raise ValueError("there was no dense network to compare with")
        return self.dense
