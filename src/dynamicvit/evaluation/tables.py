"""Tables as files: CSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dynamicvit.errors import InputError
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.optional import need
from dynamicvit.utils.outputs import WRITER

SUFFIXES = (".csv", ".jsonl", ".parquet")
STARTS = {
    ".csv": b"image,(class_1,index_1|kept_1|mask),",
    ".jsonl": rb'\{"image": "[^\n]*", "(class_1|kept_1)": ',
}
"""How tables begin whose format has no room for who wrote them."""

#: Rows of a Parquet file that are in memory at a time.
_GROUP = 10_000


def check_suffix(path: str | Path, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Check before the work that a table can be written in the format that a path's suffix names.

    Raises:
        InputError: for another suffix, or if pyarrow is missing for Parquet.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        raise InputError(f"{path} names no format: end it in {', '.join(suffixes)}")
    if suffix == ".parquet":
        need("pyarrow.parquet", "data")


def write_table(
    path: str | Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write a table, whole or not at all.

    Args:
        path: its suffix names the format.
        columns: the columns in order, each ``"string"``, ``"int"``, ``"float"``, or ``"bools"``
            for a list (in Parquet only).
        rows: values by column; a column that is missing or None is empty. Bytes of a file's name
            that are no UTF-8 are written as escapes, as no format has room for them.
    """
    rows = ({name: _as_text(value) for name, value in row.items()} for row in rows)
    suffix = Path(path).suffix.lower()
    write = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}[suffix]
    with atomic_write(path, start=STARTS.get(suffix, b"")) as draft:
        write(draft, columns, rows)


def _as_text(value: Any) -> Any:
    text = isinstance(value, str)
    return value.encode("utf-8", "backslashreplace").decode() if text else value


def _write_csv(path: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _write_json_lines(
    path: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]
) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row.get(name) for name in columns}) + "\n")


def _write_parquet(
    path: Path, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]
) -> None:
    arrow: Any = need("pyarrow", "data")
    parquet: Any = need("pyarrow.parquet", "data")
    kinds = {
        "string": arrow.string(),
        "int": arrow.int64(),
        "float": arrow.float64(),
        "bools": arrow.list_(arrow.bool_()),
    }
    fields = [(name, kinds[kind]) for name, kind in columns.items()]
    schema = arrow.schema(fields, metadata={"written_by": WRITER})
    left = iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(left, _GROUP)):
            values = {name: [row.get(name) for row in group] for name in columns}
            writer.write_table(arrow.table(values, schema))
