"""Measured times, what may be said of them, and all numbers of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from dynamicvit.core.schedule import Schedule

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Quartiles of at least two values (interpolated between the values that are there)."""
        return cls(*quantiles(sample, n=4, method="inclusive"))

    @property
    def conclusive(self) -> bool:
        """Of a ratio: whether its quartiles lie closer together than its median is to 1."""
        return self.high - self.low < abs(self.median - 1)


@dataclass(frozen=True)
class Times:
    """How long a network took for a batch, again and again.

    Attributes:
        seconds: of each round; those of networks that were timed in turn belong together.
    """

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Median and quartiles in seconds."""
        return Spread.of(self.seconds)

    def percentile(self, percent: int) -> float | None:
        """The time in seconds that so many percent of the batches keep to.

        Args:
            percent: 50 to 99.

        Returns:
            ``None`` where fewer than one sample lies beyond it: the 99th takes 100 of them.
        """
        if percent == 50:
            return median(self.seconds)
        if len(self.seconds) * (100 - percent) < 100:
            return None
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    def over(self, other: Times) -> Spread:
        """How many times longer this took than the other one, round by round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])


@dataclass(frozen=True)
class BenchRow:
    """Dense against pruned at one batch size, in one runtime and precision.

    Attributes:
        batch_size: images in a batch.
        runtime: key in :data:`~dynamicvit.runtimes.RUNTIMES`.
        precision: what it computed in.
        threads: CPU threads that all ran with.
        pruned: times of a pruned batch; of the file, where files are timed.
        dense: times of a dense batch in the same rounds; of the file that it is compared with,
            ``None`` where there is none.
        reference: times of the dense network in eager fp32, in the same rounds; ``None`` where it
            was not asked for.
        pruned_macs: of one image; ``None`` for a file.
        dense_macs: likewise, of the dense network of this row.
        names: what ``dense`` and ``pruned`` are called.
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
    names: tuple[str, str] = ("dense", "pruned")

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
    def macs_ratio(self) -> float | None:
        """What the speed-up would be if time were MACs."""
        if self.dense_macs is None or self.pruned_macs is None:
            return None
        return self.dense_macs / self.pruned_macs

    @property
    def realized(self) -> float | None:
        """The share of :attr:`macs_ratio` that the clock shows."""
        return None if self.macs_ratio is None else self.speedup.median / self.macs_ratio

    def speed(self, times: Times) -> Spread:
        """Throughput: times that of the reference where there is one, else images per second."""
        if self.reference is not None:
            return self.reference.over(times)
        return Spread.of([self.batch_size / seconds for seconds in times.seconds])

    def as_numbers(self) -> dict[str, Any]:
        """All of it, for JSON; times are in seconds."""
        numbers = {
            "batch_size": self.batch_size,
            "runtime": self.runtime,
            "precision": self.precision,
            "threads": self.threads,
            "pairs": self.pairs,
            "names": self.names,
            "pruned": self._numbers(self.pruned),
            "dense": self._numbers(self.dense),
            "reference": self._numbers(self.reference),
            "pruned_macs": self.pruned_macs,
            "dense_macs": self.dense_macs,
        }
        if self.dense is not None:
            numbers |= {
                "speedup": asdict(self.speedup),
                "conclusive": self.conclusive,
                "macs_ratio": self.macs_ratio,
                "realized": self.realized,
            }
        return numbers

    @property
    def _dense(self) -> Times:
        if self.dense is None:
            raise ValueError("there was no dense network to compare with")
        return self.dense

    def _numbers(self, times: Times | None) -> dict[str, Any] | None:
        if times is None:
            return None
        over = None if self.reference is None else self.reference.over(times)
        return {
            "seconds": asdict(times.spread),
            **{f"p{percent}": times.percentile(percent) for percent in PERCENTILES},
            "throughput": self.batch_size / times.spread.median,
            "over_reference": None if over is None else asdict(over),
        }


@dataclass(frozen=True)
class Peak:
    """Peak resident memory of a process that loads a network and runs one batch.

    Attributes:
        total: bytes, Python and torch and the weights included.
        inference: bytes by which running the batch raised the peak.
    """

    total: int
    inference: int


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of dense against pruned inference at one batch size.

    Attributes:
        batch_size: images in the batch.
        precision: what it computed in.
        graph: whether the activations were kept for a backward pass.
        dense: the dense network.
        pruned: the pruned path.
        runtime: "eager", or a format of exported files.
    """

    batch_size: int
    precision: str
    graph: bool
    dense: Peak
    pruned: Peak
    runtime: str = "eager"


@dataclass(frozen=True)
class BenchReport:
    """What was measured, and where. Iterating gives the rows.

    Attributes:
        rows: one for each batch size, runtime and precision.
        schedule: where and how much is dropped.
        image_size: height and width in pixels.
        threads: CPU threads.
        device: "cpu", "cuda", ...; memory is the CPU's all the same.
        processor: name of the device.
        versions: of torch and of the runtimes.
        dense_macs: of one image; ``None`` of a file.
        pruned_macs: of one image, prediction modules included; ``None`` of a file.
        against: the file that a file was compared with, if any.
        int8: which images int8 was calibrated on; ``None`` without int8.
        memory: peak memory, if it was asked for.
    """

    rows: tuple[BenchRow, ...]
    schedule: Schedule
    image_size: tuple[int, int]
    threads: int
    device: str
    processor: str
    versions: dict[str, str]
    dense_macs: int | None = None
    pruned_macs: int | None = None
    against: str | None = None
    int8: str | None = None
    memory: tuple[MemoryRow, ...] = ()

    def __iter__(self) -> Iterator[BenchRow]:
        return iter(self.rows)

    def as_numbers(self) -> dict[str, Any]:
        """All of it, for JSON; times are in seconds."""
        return {
            "stages": self.schedule.stages,
            "keep_ratios": self.schedule.keep_ratios,
            "policy": self.schedule.policy,
            "image_size": self.image_size,
            "dense_macs": self.dense_macs,
            "pruned_macs": self.pruned_macs,
            "threads": self.threads,
            "device": self.device,
            "processor": self.processor,
            "versions": self.versions,
            "against": self.against,
            "int8": self.int8,
            "rows": [row.as_numbers() for row in self.rows],
            "memory": [asdict(row) for row in self.memory],
        }
