"""The plots of a table that ``dynamicvit compare`` wrote, drawn again.

python benchmarks/draw_comparison.py docs/comparison.csv -o docs/images
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

from dynamicvit.comparison import ABLATIONS, Line
from dynamicvit.comparison.timing import Timing
from dynamicvit.plots.comparison import save_comparison


def line_of(row: dict[str, str]) -> Line:
    """A row of the table."""
    values = {name: float(text) if _is_number(text) else None for name, text in row.items()}
    measures = [field.name for field in fields(Timing) if field.name != "batch_size"]
    sizes = [int(name.rpartition("_")[2]) for name in row if name.startswith("speedup_batch_")]
    timings = {
        size: Timing(size, **{name: values[f"{name}_batch_{size}"] for name in measures})
        for size in sizes
        if row[f"speedup_batch_{size}"]
    }
    names = {field.name for field in fields(Line)} - {"method", "trained", "given", "timings"}
    numbers: dict[str, Any] = {name: values.get(name) for name in names}
    trained, given = row["trained"] == "True", row.get("given") == "True"
    return Line(row["method"], trained=trained, given=given, timings=timings, **numbers)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("e-", "", 1).isdigit()


def main() -> None:
    """Draw a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"))
    options = parser.parse_args()
    with options.table.open(newline="", encoding="utf-8") as file:
        lines = [line_of(row) for row in csv.DictReader(file)]
    print(*save_comparison(lines, options.output, ABLATIONS))


if __name__ == "__main__":
    main()
