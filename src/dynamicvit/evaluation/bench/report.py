"""Measured times and memory, and the report of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from dynamicvit.core.schedule import Schedule

PERCENTILES = (50, 95, 99)

_TIMES = ("dense", "pruned", "reference")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Quartiles of at least two values, interpolated."""
        return cls(*quantiles(sample, n=4, method="inclusive"))

    @property
    def conclusive(self) -> bool:
        """Of a ratio: whether its quartiles are closer to each other than its median is to 1."""
        return self.high - self.low < abs(self.median - 1)


@dataclass(frozen=True)
class Times:
    """Seconds that a network took for a batch, one for each round.

    The same rounds of networks that were timed in turn belong together.
    """

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Median and quartiles in seconds."""
        return Spread.of(self.seconds)

    def percentile(self, percent: int) -> float | None:
        """A percentile in seconds; ``None`` with too few samples: the 99th needs 100.

        Args:
            percent: 50 to 99.
        """
        if percent == 50:
            return median(self.seconds)
        if len(self.seconds) * (100 - percent) < 100:
            return None
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    def over(self, other: Times) -> Spread:
        """These times divided by the other's, round by round."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return Spread.of([mine / theirs for mine, theirs in pairs])


@dataclass(frozen=True)
class BenchRow:
    """Dense against pruned at one batch size, in one runtime and precision.

    Attributes:
        batch_size: images in a batch.
        runtime: key in :data:`~dynamicvit.runtimes.RUNTIMES`.
        precision: of the computation.
        threads: CPU threads.
        pruned: times of the pruned network, or of a file.
        dense: times of the dense network, or of another file, in the same rounds.
        reference: times of the dense network in eager fp32 in the same rounds, if asked for.
        pruned_macs: of one image; ``None`` for a file.
        dense_macs: likewise, of this row's dense network.
        names: of ``dense`` and ``pruned``.
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
        """Number of rounds."""
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
    def macs_ratio(self) -> float | None:
        """Dense over pruned MACs: the speed-up if time were MACs."""
        if self.dense_macs is None or self.pruned_macs is None:
            return None
        return self.dense_macs / self.pruned_macs

    @property
    def realized(self) -> float | None:
        """The speed-up's share of :attr:`macs_ratio`."""
        return None if self.macs_ratio is None else self.speedup.median / self.macs_ratio

    def speed(self, times: Times) -> Spread:
        """Throughput: relative to the reference if there is one, else in images per second."""
        if self.reference is not None:
            return self.reference.over(times)
        return Spread.of([self.batch_size / seconds for seconds in times.seconds])

    def as_numbers(self) -> dict[str, Any]:
        """Everything, for JSON; times are in seconds."""
        times = {name: self._numbers(getattr(self, name)) for name in _TIMES}
        numbers = {**vars(self), "pairs": self.pairs, **times}
        if self.dense is not None:
            numbers |= {
                "speedup": asdict(self.speedup),
                "conclusive": self.speedup.conclusive,
                "macs_ratio": self.macs_ratio,
                "realized": self.realized,
            }
        return numbers

    @property
    def _dense(self) -> Times:
        if self.dense is None:
            raise ValueError("no dense network was timed")
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
        total: bytes, with Python, torch and the weights.
        inference: bytes by which the batch raised the peak.
    """

    total: int
    inference: int


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of dense against pruned inference at one batch size.

    Attributes:
        batch_size: images in the batch.
        precision: of the computation.
        graph: whether the activations were kept for a backward pass.
        dense: of the dense network.
        pruned: of the pruned path.
        runtime: of :data:`~dynamicvit.evaluation.bench.MEASURED`.
    """

    batch_size: int
    precision: str
    graph: bool
    dense: Peak
    pruned: Peak
    runtime: str = "eager"


@dataclass(frozen=True)
class BenchReport:
    """All measurements, and the machine. Iterating gives the rows.

    Attributes:
        rows: one for each batch size, runtime and precision.
        schedule: of the model.
        method: its name; ``None`` where a file does not say.
        image_size: height and width in pixels.
        threads: CPU threads.
        device: "cpu", "cuda", ...; memory is always the CPU's.
        processor: name of the device.
        versions: of torch and of the runtimes.
        dense_macs: of one image; ``None`` for a file.
        pruned_macs: of one image, prediction modules included; ``None`` for a file.
        against: the file that a file was compared with, if any.
        int8: images that int8 was calibrated on, in words; ``None`` without int8.
        memory: peak memory, if asked for.
        frames: of a clip; ``None`` for images.
    """

    rows: tuple[BenchRow, ...]
    schedule: Schedule
    method: str | None
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
    frames: int | None = None

    def __iter__(self) -> Iterator[BenchRow]:
        return iter(self.rows)

    def as_numbers(self) -> dict[str, Any]:
        """Everything, for JSON; times are in seconds."""
        numbers = asdict(self)
        rows = [row.as_numbers() for row in self.rows]
        return {**numbers.pop("schedule"), **numbers, "rows": rows}
