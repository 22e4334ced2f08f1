"""What ``dynamicvit compare`` prints: tables that fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.table import Table

from dynamicvit.comparison import BATCH_SIZES, Line
from dynamicvit.utils.words import percent


def results_table(lines: Sequence[Line]) -> Table:
    """A line for each method, trained or not, under the budget that it was built for.

    Args:
        lines: by budget; top-1 or mIoU is a column if one of them has labels.
    """
    scores = dict.fromkeys(line.score[0] for line in lines if line.score)
    diverges = any(line.divergence is not None for line in lines)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", vertical="bottom", overflow="fold")  # or a folder, which may be long
    for heading in (
        *(f"{name}\n%" for name in scores),
        "agreement\n%",
        *(["KL"] if diverges else []),
        "of\ndense",
        "runs",
        *(f"batch\n{size}" for size in BATCH_SIZES),
    ):
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    for fraction, group in groupby(lines, lambda line: line.fraction):
        members = list(group)
        if any(not line.is_dense for line in members):
            table.add_section()
            table.add_row(f"[bold]for {fraction:g} of dense[/bold]")
        for line in members:
            table.add_row(
                line.method,
                *(_share(*line.score[1:]) if line.score else "-" for _ in scores),
                _share(line.agreement, line.agreement_spread),
                *([f"{line.divergence or 0:.4f}"] if diverges else []),
                f"{line.macs_fraction:.3f}",
                _runs(line),
                *(_speedup(line, size) for size in BATCH_SIZES),
            )
    table.caption = (
        "KL: divergence from dense, in nats\n" * diverges + "runs: fine-tuned, each with a seed\n"
        "batch: times as fast as dense"
    )
    for views in dict.fromkeys(line.views for line in lines if line.views):
        table.caption += f"\nof {views} views (clips × crops) of each video"

    return table


def costs_table(lines: Sequence[Line]) -> Table:
    """What the methods themselves take, each once: training plays no part in it."""
    table = Table(title="what choosing takes", box=None)
    table.add_column("method", no_wrap=True)
    table.add_column("of dense", justify="right")
    for size in BATCH_SIZES:
        table.add_column(f"batch {size}", justify="right")
    once = {(line.method, line.fraction): line for line in lines if line.timings}
    for line in once.values():
        costs = (_choosing(line, size) for size in BATCH_SIZES)
        table.add_row(line.method, f"{line.macs_fraction:.3f}", *costs)
    table.caption = "ms, share of the time saved"
    return table


def _runs(line: Line) -> str:
    if line.is_dense:
        return "-"
    if line.given:
        return "as is"
    return str(line.seeds) if line.trained else "untrained"


def _share(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")


def _speedup(line: Line, size: int) -> str:
    timing = line.timings.get(size)
    return "-" if timing is None else f"{timing.speedup:.2f}"


def _choosing(line: Line, size: int) -> str:
    """Milliseconds, and the share of the time saved."""
    timing = line.timings.get(size)
    if timing is None:
        return "-"
    share = timing.choosing_share
    return f"{timing.choosing_ms:.2f} ms" + ("" if share is None else f", {percent(share, 0)}")
