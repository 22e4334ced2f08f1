"""What `dynamicvit bench` measured, and where; as numbers for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dynamicvit.core.schedule import Policy
from dynamicvit.evaluation.bench import BenchRow, MemoryRow, Times

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Report:
    """What was measured, and where; a table of it says how much.

    Attributes:
        model: as it was asked for.
        weights: "random" or "given".
        stages: blocks before which tokens are dropped.
        keep_ratios: share of the patches that each stage leaves.
        policy: what becomes of the others.
        image_size: height and width in pixels.
        dense_macs: of one image; ``None`` of a file.
        pruned_macs: of one image, prediction modules included; ``None`` of a file.
        threads: CPU threads.
        device: "cuda" where there is one, else "cpu"; memory is the CPU's all the same.
        processor: name of the device.
        versions: of torch and of the runtimes.
        against: the other file, which the rows call dense.
        int8: what it was calibrated on; ``None`` without int8.
    """

    model: str
    weights: str
    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    policy: Policy
    image_size: tuple[int, int]
    dense_macs: int | None
    pruned_macs: int | None
    threads: int
    device: str
    processor: str
    versions: dict[str, str]
    against: str | None = None
    int8: str | None = None


def title_of(report: Report) -> str:
    """What a plot of it is called."""
    against = "" if report.against is None else f" (pruned) against {report.against} (dense)"
    return f"{report.model}{against}, {report.processor}"


def as_numbers(
    report: Report, rows: Sequence[BenchRow], peaks: Sequence[MemoryRow]
) -> dict[str, Any]:
    """All of it, for JSON; times are in seconds."""
    return {
        **asdict(report),
        "rows": [_row(row) for row in rows],
        "memory": [asdict(row) for row in peaks],
    }


def _row(row: BenchRow) -> dict[str, Any]:
    numbers = {
        "batch_size": row.batch_size,
        "runtime": row.runtime,
        "precision": row.precision,
        "threads": row.threads,
        "pairs": row.pairs,
        "pruned": _network(row, row.pruned),
        "dense": None if row.dense is None else _network(row, row.dense),
        "reference": None if row.reference is None else _network(row, row.reference),
        "pruned_macs": row.pruned_macs,
        "dense_macs": row.dense_macs,
    }
    if row.dense is not None:
        numbers |= {
            "speedup": asdict(row.speedup),
            "conclusive": row.conclusive,
            "macs_ratio": row.macs_ratio,
            "realized": row.realized,
        }
    return numbers


def _network(row: BenchRow, times: Times) -> dict[str, Any]:
    over = None if row.reference is None else row.reference.over(times)
    return {
        "seconds": asdict(times.spread),
        **{f"p{percent}": times.percentile(percent) for percent in PERCENTILES},
        "throughput": row.batch_size / times.spread.median,
        "over_reference": None if over is None else asdict(over),
    }
