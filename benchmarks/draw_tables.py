"""The plots of measured tables, drawn from the pages of the documentation that print them.

python benchmarks/draw_tables.py docs -o docs/images

Draws ``speed.png`` from performance.md and ``staircase.png`` from quantization.md. The first page
prints medians of throughput alone, so the bars of ``speed.png`` have no quartiles.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from quantization import BATCHES, REFERENCE, draw

from dynamicvit.evaluation.bench import BenchRow, Spread
from dynamicvit.plots import save
from dynamicvit.plots.speed import plot_speed

_TITLE = "deit_small_patch16_224, two cores of an AMD EPYC"
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Speed:
    """A printed row of ``dynamicvit bench``, as :func:`plot_speed` reads one."""

    batch_size: int
    runtime: str
    precision: str
    dense: float
    pruned: float
    speedup: Spread
    reference: str = REFERENCE
    names: tuple[str, str] = ("dense", "pruned")

    def speed(self, throughput: float) -> Spread:
        """A median, relative to the reference, as it is."""
        return Spread(throughput, throughput, throughput)


def table(page: Path, first: str) -> list[dict[str, str]]:
    """The rows of the first table with a column, each by its headings."""
    lines = [
        [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if line.startswith("|")
        else []
        for line in page.read_text(encoding="utf-8").splitlines()
    ]
    start = next(place for place, cells in enumerate(lines) if first in cells)
    end = lines.index([], start)
    return [dict(zip(lines[start], cells, strict=True)) for cells in lines[start + 2 : end]]


def spread(text: str) -> Spread:
    """Of a cell like ``1.39 [1.34–1.43]``."""
    median, low, high = (float(match[0]) for match in _NUMBER.finditer(text))
    return Spread(low, median, high)


def speeds(page: Path) -> list[Speed]:
    """Dense against pruned in each runtime, as performance.md has it."""
    found = []
    for row in table(page, "pruned ms"):
        times = next(row[heading] for heading in row if heading.startswith("throughput"))
        dense, pruned = map(float, times.split(", "))
        gain = spread(row["speed-up [quartiles]"])
        found.append(Speed(int(row["batch"]), row["runtime"], row["type"], dense, pruned, gain))
    return found


def steps(page: Path) -> list[dict[str, Any]]:
    """Each precision, dense and pruned, as quantization.md has it."""
    one = {"top1": None, "speed_up": 1.0, "lower": 1.0, "upper": 1.0}
    found: list[dict[str, Any]] = []
    for batch in BATCHES:
        found.append({"batch": batch, "step": REFERENCE, **one})
        for row in table(page, f"batch {batch}"):
            speed, top1 = spread(row[f"batch {batch}"]), _NUMBER.match(row["top-1"])
            found.append(
                {
                    "batch": batch,
                    "step": row[""].removeprefix("ρ = 0.7 "),
                    "top1": float(top1[0]) / 100 if top1 else None,
                    "speed_up": speed.median,
                    "lower": speed.low,
                    "upper": speed.high,
                }
            )
    return found


def draw_all(docs: Path, folder: Path) -> list[Path]:
    """Draw both; gives the files."""
    rows = cast("list[BenchRow]", speeds(docs / "performance.md"))
    [speed] = save(plot_speed(rows, _TITLE), folder / "speed.png")
    staircase = folder / "staircase.png"
    draw(steps(docs / "quantization.md"), staircase)
    return [speed, staircase]


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("docs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"))
    options = parser.parse_args()
    print(*draw_all(options.docs, options.output))


if __name__ == "__main__":
    main()
