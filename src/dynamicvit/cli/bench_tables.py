"""What `dynamicvit bench` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynamicvit.cli.console import say
from dynamicvit.evaluation.bench import (
    PERCENTILES,
    REFERENCE,
    BenchReport,
    BenchRow,
    MemoryRow,
    Spread,
    Times,
)


def print_heading(console: Console, report: BenchReport, name: str, weights: str) -> None:
    """What is measured.

    Args:
        console: where.
        report: of the model.
        name: of the model, as the user wrote it.
        weights: "random" or "given".
    """
    height, width = report.image_size
    schedule = report.schedule
    line = f"{name} ({weights} weights), {height}x{width} px"
    if schedule.stages:
        ratios = ", ".join(f"{ratio:.3g}" for ratio in schedule.keep_ratios)
        blocks = ", ".join(map(str, schedule.stages))
        line += (
            f", keeps {ratios} of the patches from blocks {blocks} on, the others {schedule.fate}"
        )
    say(console, line)
    if report.against is not None:
        say(console, f"against {report.against}")
    if report.int8 is not None:
        say(console, f"int8 calibrated on {report.int8}")
    if report.dense_macs is not None and report.pruned_macs is not None:
        say(
            console,
            f"GMACs {report.dense_macs / 1e9:.3g} dense, {report.pruned_macs / 1e9:.3g} pruned: "
            f"{report.dense_macs / report.pruned_macs:.2f} times fewer",
        )


def print_machine(console: Console, report: BenchReport) -> None:
    """Where it was measured."""
    software = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    say(console, f"{software}, {report.threads} threads, {report.processor}")


@dataclass(frozen=True)
class _Line:
    """One network of a row."""

    row: BenchRow
    network: str
    times: Times
    runtime: str
    precision: str
    over_reference: Spread | None = None
    speedup: Spread | None = None
    realized: float | None = None

    @property
    def ratios(self) -> list[Spread]:
        """Those that are printed."""
        return [ratio for ratio in (self.over_reference, self.speedup) if ratio is not None]


def _lines(rows: Sequence[BenchRow]) -> Iterator[_Line]:
    """The two networks of each row, and before them the reference where it is neither."""
    wholes = [row.dense for row in rows]
    told: list[Times] = []
    for row in rows:
        reference = row.reference
        if reference is not None and not _among(reference, [*wholes, *told]):
            told.append(reference)
            yield _Line(row, "dense", reference, *REFERENCE)
        if row.dense is not None:
            relation = None if reference in (None, row.dense) else reference.over(row.dense)
            yield _Line(row, row.names[0], row.dense, row.runtime, row.precision, relation)
        yield _Line(
            row,
            row.names[1],
            row.pruned,
            row.runtime,
            row.precision,
            None if reference is None else reference.over(row.pruned),
            None if row.dense is None else row.speedup,
            row.realized,
        )


def _among(times: Times, others: Sequence[Times | None]) -> bool:
    return any(times is other for other in others)


def print_times(console: Console, rows: Sequence[BenchRow]) -> None:
    """A line for each network, runtime and precision, and what can't be told from them."""
    lines = list(_lines(rows))
    columns: dict[str, Callable[[_Line], str]] = {
        "batch": lambda line: str(line.row.batch_size),
        "runtime": lambda line: line.runtime,
        "type": lambda line: line.precision,
        "": lambda line: line.network,
    }
    for percent in PERCENTILES:
        columns[f"p{percent}\nms"] = partial(_milliseconds, percent)
    columns["img/s"] = lambda line: f"{line.row.batch_size / line.times.spread.median:.4g}"
    if any(line.over_reference for line in lines):
        columns["× dense eager fp32\n[quartiles]"] = lambda line: _ratio(line.over_reference)
    if any(line.speedup for line in lines):
        columns["speed-up\n[quartiles]"] = lambda line: _ratio(line.speedup)
    if any(line.realized for line in lines):
        columns["of MACs\nratio"] = lambda line: f"{line.realized:.0%}" if line.realized else ""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        words = name in ("runtime", "type", "") or "quartiles" in name
        table.add_column(escape(name), justify="left" if words else "right", vertical="bottom")
    for line in lines:
        table.add_row(*(escape(cell(line)) for cell in columns.values()))
    _print_whole(console, table)
    if any(line.ratios for line in lines):
        say(console, "ratios: the median round's, which need not be the ratio of two medians")
    if not all(ratio.conclusive for line in lines for ratio in line.ratios):
        say(
            console,
            "unclear: the quartiles lie further apart than the ratio is from 1; measure for "
            "longer (--seconds), or on a quieter machine",
        )
    rounds = sorted({row.pairs for row in rows})
    counts = " to ".join(map(str, dict.fromkeys([rounds[0], rounds[-1]])))
    few = "; p95 takes 20, p99 100 (--samples 100)" if rounds[0] < 100 else ""
    say(console, f"{counts} rounds{few}")


def print_memory(console: Console, peaks: Sequence[MemoryRow], first_stage: int | None) -> None:
    """Peak memory, and why it may be the same.

    Args:
        console: where.
        peaks: all at one batch size.
        first_stage: block before which tokens are first dropped; ``None`` if none are.
    """
    say(console, f"\npeak memory in MiB, batch {peaks[0].batch_size}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("dense\nprocess", "pruned\nprocess", "dense\nbatch", "pruned\nbatch"):
        table.add_column(name, justify="right")
    for row in peaks:
        sizes = (
            row.dense.total,
            row.pruned.total,
            row.dense.inference,
            row.pruned.inference,
        )
        kind = "eval(), graph kept" if row.graph else "inference mode"
        table.add_row(
            f"{row.runtime} {row.precision}{f', {kind}' if row.runtime == 'eager' else ''}",
            *(f"{size / 2**20:.0f}" for size in sizes),
        )
    _print_whole(console, table)
    if first_stage:
        say(
            console,
            f"inference mode holds one block's activations at a time: the first {first_stage} "
            "blocks, which see every patch, set its peak",
        )


def _print_whole(console: Console, table: Table) -> None:
    """A table as wide as it is: a narrow terminal breaks its lines rather than its numbers."""
    text = StringIO()
    page = Console(file=text, width=1000, color_system=None)
    page.print(table)
    for line in text.getvalue().splitlines():
        say(console, line.rstrip())


def _milliseconds(percent: int, line: _Line) -> str:
    seconds = line.times.percentile(percent)
    return "–" if seconds is None else f"{seconds * 1e3:.4g}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    text = f"{spread.median:.2f} [{spread.low:.2f}–{spread.high:.2f}]"
    return text if spread.conclusive else f"{text} unclear"
