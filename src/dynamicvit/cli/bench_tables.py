"""The output of `dynamicvit bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynamicvit.cli.console import percents, say
from dynamicvit.core.registry import fate
from dynamicvit.evaluation.bench import (
    PERCENTILES,
    REFERENCE,
    BenchReport,
    BenchRow,
    MemoryRow,
    Spread,
    Times,
)
from dynamicvit.utils.words import percent


def print_heading(console: Console, report: BenchReport, name: str, weights: str) -> None:
    """Print a model's name, its weights ("random" or "given"), its schedule and its MACs."""
    height, width = report.image_size
    schedule = report.schedule
    clip = "" if report.frames is None else f"{report.frames} frames of "
    line = f"{name} ({weights} weights), {clip}{height}x{width} px"
    if schedule.stages:
        blocks = ", ".join(map(str, schedule.stages))
        line += (
            f", keeps {percents(schedule.keep_ratios)} of the patches from blocks {blocks} on, "
            f"the others {fate(report.method, schedule.policy)}"
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
    """Print the software and the processor."""
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


def _lines(rows: Sequence[BenchRow]) -> Iterator[_Line]:
    """The two networks of each row, after its reference if that is not in a row itself."""
    shown = [id(row.dense) for row in rows]
    for row in rows:
        reference = row.reference
        if reference is not None and id(reference) not in shown:
            shown.append(id(reference))
            yield _Line(row, "dense", reference, *REFERENCE)
        if row.dense is not None:
            ratio = None if reference in (None, row.dense) else reference.over(row.dense)
            yield _Line(row, row.names[0], row.dense, row.runtime, row.precision, ratio)
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


def print_times(console: Console, rows: Sequence[BenchRow]) -> None:
    """Print a line for each network, runtime and precision, and which ratios are unclear."""
    lines = list(_lines(rows))
    columns: dict[str, Callable[[_Line], str]] = {
        "batch": lambda line: str(line.row.batch_size),
        "runtime": lambda line: line.runtime,
        "type": lambda line: line.precision,
        "": lambda line: line.network,
    }
    for each in PERCENTILES:
        columns[f"p{each}\nms"] = partial(_milliseconds, each)
    columns["img/s"] = lambda line: f"{line.row.batch_size / line.times.spread.median:.4g}"
    if any(line.over_reference for line in lines):
        columns["× dense eager fp32\n[quartiles]"] = lambda line: _ratio(line.over_reference)
    if any(line.speedup for line in lines):
        columns["speed-up\n[quartiles]"] = lambda line: _ratio(line.speedup)
    if any(line.realized for line in lines):
        columns["of MACs\nratio"] = _of_macs
    table = Table(box=None, pad_edge=False)
    for name in columns:
        words = name in ("runtime", "type", "") or "quartiles" in name
        table.add_column(escape(name), justify="left" if words else "right", vertical="bottom")
    for line in lines:
        table.add_row(*(escape(cell(line)) for cell in columns.values()))
    _print_whole(console, table)
    pairs = [(line.over_reference, line.speedup) for line in lines]
    ratios = [ratio for pair in pairs for ratio in pair if ratio is not None]
    if ratios:
        say(console, "ratios: medians of the rounds' ratios, not ratios of the medians")
    if not all(ratio.conclusive for ratio in ratios):
        say(
            console,
            "unclear: the quartiles are further from each other than the ratio is from 1; measure "
            "for longer (--seconds), or on a quieter machine",
        )
    rounds = [row.pairs for row in rows]
    counts = " to ".join(map(str, dict.fromkeys([min(rounds), max(rounds)])))
    few = "; p95 needs 20, p99 100 (--samples 100)" if min(rounds) < 100 else ""
    say(console, f"{counts} rounds{few}")


def print_memory(console: Console, peaks: Sequence[MemoryRow], first_stage: int | None) -> None:
    """Print peak memory at one batch size, and why it may be the same before the first stage."""
    say(console, f"\npeak memory in MiB, batch {peaks[0].batch_size}")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("dense\nprocess", "pruned\nprocess", "dense\nbatch", "pruned\nbatch"):
        table.add_column(name, justify="right")
    for row in peaks:
        both = (row.dense, row.pruned)
        sizes = [*(peak.total for peak in both), *(peak.inference for peak in both)]
        kind = f"{row.runtime} {row.precision}"
        if row.runtime == "eager":
            kind += ", eval(), graph kept" if row.graph else ", inference mode"
        table.add_row(kind, *(f"{size / 2**20:.0f}" for size in sizes))
    _print_whole(console, table)
    if first_stage:
        say(
            console,
            "inference mode keeps the activations of one block at a time: the peak is that of the "
            f"blocks before block {first_stage}, with all patches",
        )


def _print_whole(console: Console, table: Table) -> None:
    """Print a table at full width: a narrow terminal breaks its lines, not its cells."""
    page = Console(file=StringIO(), width=1000, color_system=None)
    with page.capture() as text:
        page.print(table)
    for line in text.get().splitlines():
        say(console, line.rstrip())


def _milliseconds(percent: int, line: _Line) -> str:
    seconds = line.times.percentile(percent)
    return "–" if seconds is None else f"{seconds * 1e3:.4g}"


def _of_macs(line: _Line) -> str:
    return percent(line.realized, 0) if line.realized else ""


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    text = f"{spread.median:.2f} [{spread.low:.2f}–{spread.high:.2f}]"
    return text if spread.conclusive else f"{text} unclear"
