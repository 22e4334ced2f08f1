"""What comes out of a comparison: a row for each run, a line over the seeds, a table of lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import mean, stdev

from dynamicvit.comparison.rows import ABLATIONS, DENSE_NAME, all_names
from dynamicvit.comparison.timing import Timing
from dynamicvit.utils.words import percent


@dataclass(frozen=True)
class Row:
    """What one row says.

    Attributes:
        method: name of the candidate.
        fraction: of the dense MACs that was asked for.
        macs_fraction: that it has.
        gmacs: of one image, or of all views of one video, everything counted.
        seed: of training; ``None`` untrained.
        images: seen in training.
        top1: share of the labeled images, or ``None`` without labels.
        agreement: share of the images on which the dense network says the same.
        divergence: KL divergence from the dense network's answers, in nats; ``None`` of maps.
        evaluated: images that were evaluated.
        given: of a model that was trained before, what tells its weights from others.
        miou: of a segmentation model, whose agreement is the share of the pixels; ``None`` without
            masks.
        views: clips × crops of a video that were evaluated; empty for images.
    """

    method: str
    fraction: float
    macs_fraction: float
    gmacs: float
    seed: int | None
    images: int
    top1: float | None
    agreement: float
    divergence: float | None
    evaluated: int
    given: str = ""
    miou: float | None = None
    views: str = ""

    def __str__(self) -> str:
        said = [
            f"{name} {percent(share, 2)}"
            for name, share in (("top-1", self.top1), ("mIoU", self.miou))
            if share is not None
        ]
        said.append(f"agreement {percent(self.agreement, 2)}")
        if self.divergence is not None:
            said.append(f"KL {self.divergence:.4f}")
        return f"{', '.join(said)}, {self.gmacs:.3f} GMACs" + (
            f", {self.views} views" if self.views else ""
        )


@dataclass(frozen=True)
class Line:
    """A candidate at one budget, over its seeds.

    Attributes:
        method: its name.
        fraction: of the dense MACs that was asked for.
        trained: whether it was fine-tuned.
        gmacs: of one image, or of all views of one video.
        macs_fraction: of the dense network's.
        top1: mean over the seeds, in 0..1; ``None`` without labels.
        top1_spread: standard deviation over the seeds; ``None`` with fewer than two.
        agreement: mean over the seeds.
        agreement_spread: likewise.
        divergence: mean over the seeds, in nats; ``None`` of maps.
        seeds: how many.
        images: seen in training.
        timings: by batch size.
        given: whether it is a model that was trained before, compared as it is.
        miou: mean over the seeds; ``None`` without masks.
        miou_spread: likewise.
        views: clips × crops of a video; empty for images.
    """

    method: str
    fraction: float
    trained: bool
    gmacs: float
    macs_fraction: float
    top1: float | None
    top1_spread: float | None
    agreement: float
    agreement_spread: float | None
    divergence: float | None
    seeds: int
    images: int
    timings: Mapping[int, Timing]
    given: bool = False
    miou: float | None = None
    miou_spread: float | None = None
    views: str = ""

    @property
    def score(self) -> tuple[str, float, float | None] | None:
        """What labels measure: its name, mean and spread; ``None`` without labels."""
        if self.top1 is not None:
            return "top-1", self.top1, self.top1_spread
        return None if self.miou is None else ("mIoU", self.miou, self.miou_spread)

    @property
    def is_dense(self) -> bool:
        """Whether it is the dense network's."""
        return self.method == DENSE_NAME

    @property
    def label(self) -> str:
        """How plots call it."""
        needs_none = self.trained or self.is_dense or self.given
        return self.method if needs_none else f"{self.method}, untrained"


def lines_of(
    rows: Sequence[Row], timings: Mapping[tuple[str, float], Sequence[Timing]]
) -> list[Line]:
    """Rows that differ in their seed only become one line.

    Ordered: dense, then budgets from large to small, in each the methods in the order of their
    registry, others behind them, the untrained before the trained.
    """
    groups: dict[tuple[str, float, bool, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.fraction, row.seed is not None, row.given), []).append(
            row
        )
    order = list(dict.fromkeys([DENSE_NAME, *all_names(), *ABLATIONS, *(r.method for r in rows)]))
    ranked = sorted(groups, key=lambda group: (-group[1], order.index(group[0]), group[2]))
    return [
        _line(groups[group], {t.batch_size: t for t in timings.get(group[:2], ())})
        for group in ranked
    ]


def _line(rows: Sequence[Row], timings: Mapping[int, Timing]) -> Line:
    first = rows[0]
    top1, miou = (
        [value for row in rows if (value := getattr(row, name)) is not None]
        for name in ("top1", "miou")
    )
    agreed = [row.agreement for row in rows]
    diverged = [row.divergence for row in rows if row.divergence is not None]
    return Line(
        method=first.method,
        fraction=first.fraction,
        trained=first.seed is not None,
        gmacs=first.gmacs,
        macs_fraction=first.macs_fraction,
        top1=mean(top1) if top1 else None,
        top1_spread=_spread(top1),
        miou=mean(miou) if miou else None,
        miou_spread=_spread(miou),
        views=first.views,
        agreement=mean(agreed),
        agreement_spread=_spread(agreed),
        divergence=mean(diverged) if diverged else None,
        seeds=len(rows),
        images=first.images,
        timings=timings,
        given=bool(first.given),
    )


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


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
    columns = [each.name for each in fields(Line) if each.name != "timings"]
    columns += [f"{measure}_batch_{size}" for size in sizes for measure in measures]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for values in table:
        writer.writerow({name: _rounded(value) for name, value in values.items()})
    return text.getvalue()


def _rounded(value: object) -> object:
    return round(value, 5) if isinstance(value, float) else value
