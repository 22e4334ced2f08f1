"""Measured times, and what may be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


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
