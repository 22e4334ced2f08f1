"""Rows and timings as the lines of one table, and as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev

from dynamicvit.evaluation.compare.experiment import DENSE_NAME, Row
from dynamicvit.evaluation.compare.timing import Timing
from dynamicvit.methods import WAYS


@dataclass(frozen=True)
class Line:
    """A way at one budget, over its seeds.

    Attributes:
        way: its name.
        fraction: of the dense MACs that was asked for.
        trained: whether it was fine-tuned.
        gmacs: of one image.
        macs_fraction: of the dense network's.
        top1: mean over the seeds, in 0..1; ``None`` without labels.
        top1_spread: standard deviation over the seeds; ``None`` with fewer than two.
        agreement: mean over the seeds.
        agreement_spread: likewise.
        seeds: how many.
        images: seen in training.
        timings: by batch size.
    """

    way: str
    fraction: float
    trained: bool
    gmacs: float
    macs_fraction: float
    top1: float | None
    top1_spread: float | None
    agreement: float
    agreement_spread: float | None
    seeds: int
    images: int
    timings: Mapping[int, Timing]

    @property
    def label(self) -> str:
        """How plots call it."""
        untrained = not self.trained and self.way != DENSE_NAME
        return f"{self.way}, untrained" if untrained else self.way


def lines_of(
    rows: Sequence[Row], timings: Mapping[tuple[str, float], Sequence[Timing]]
) -> list[Line]:
    """Rows that differ in their seed only become one line.

    Ordered: dense, then budgets from large to small, in each the ways in their own order, the
    untrained before the trained.
    """
    groups: dict[tuple[str, float, bool], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.way, row.fraction, row.seed is not None), []).append(row)
    order = [DENSE_NAME, *WAYS]
    ranked = sorted(groups, key=lambda group: (-group[1], order.index(group[0]), group[2]))
    return [
        _line(groups[group], {t.batch_size: t for t in timings.get(group[:2], ())})
        for group in ranked
    ]


def _line(rows: Sequence[Row], timings: Mapping[int, Timing]) -> Line:
    first = rows[0]
    labeled = [row.top1 for row in rows if row.top1 is not None]
    agreed = [row.agreement for row in rows]
    return Line(
        way=first.way,
        fraction=first.fraction,
        trained=first.seed is not None,
        gmacs=first.gmacs,
        macs_fraction=first.macs_fraction,
        top1=mean(labeled) if labeled else None,
        top1_spread=stdev(labeled) if len(labeled) > 1 else None,
        agreement=mean(agreed),
        agreement_spread=stdev(agreed) if len(agreed) > 1 else None,
        seeds=len(rows),
        images=first.images,
        timings=timings,
    )


def write_csv(lines: Sequence[Line]) -> str:
    """The lines as CSV, shares in 0..1; empty where there is no value."""
    sizes = sorted({size for line in lines for size in line.timings})
    measures = ("speedup", "low", "high", "dense_ms", "ms", "choosing_ms", "choosing_share")
    table = []
    for line in lines:
        values = {name: value for name, value in asdict(line).items() if name != "timings"}
        for size in sizes:
            timing = line.timings.get(size)
            for measure in measures:
                values[f"{measure}_batch_{size}"] = timing and getattr(timing, measure)
        table.append(values)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    for values in table:
        writer.writerow({name: _rounded(value) for name, value in values.items()})
    return text.getvalue()


def _rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value
