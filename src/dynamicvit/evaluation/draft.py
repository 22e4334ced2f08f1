"""A table that is not whole yet: its rows in a file beside it, from which a run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamicvit.errors import InputError
from dynamicvit.evaluation.tables import write_table
from dynamicvit.utils.files import named
from dynamicvit.utils.outputs import WRITER, is_ours


class Draft:
    """The rows that an earlier run has written, as JSON lines below the settings, and new ones.

    Args:
        output: the table's path; the draft is ``OUTPUT.part``.
        settings: that rows depend on; plain values.

    Attributes:
        path: of the draft.
        done: its number of rows.
        last: its last row, if any.

    Raises:
        InputError: if the draft was begun with other settings, or is another's file.
    """

    def __init__(self, output: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.output = Path(output)
        self.path = self.output.with_name(f"{self.output.name}.part")
        # Tuples become lists, as in the file.
        self._settings = json.loads(json.dumps({"written_by": WRITER, **settings}))
        self._ends: list[int] = []  # of each whole line, in bytes
        self.last: dict[str, Any] | None = None
        if self.path.exists():
            try:
                self._read()
            except (ValueError, AttributeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{self.path} is damaged ({error}): delete it") from error

    @property
    def done(self) -> int:
        """Its number of rows."""
        return max(0, len(self._ends) - 1)

    def _read(self) -> None:
        if not is_ours(self.path):
            raise InputError(
                f"{self.path} exists, and dynamicvit did not write it: give another name than "
                f"{self.output}"
            )
        end, line = 0, b""
        with open(self.path, "rb") as file:
            for each in file:
                if not each.endswith(b"\n"):  # cut off by a crash
                    break
                line, end = each, end + len(each)
                if not self._ends:
                    self._check(json.loads(line))
                self._ends.append(end)
        if self.done:
            self.last = json.loads(line)

    def _check(self, settings: dict[str, Any]) -> None:
        for name, value in self._settings.items():
            if name != "written_by" and settings.get(name) != value:
                raise InputError(
                    f"{self.path} was begun with another {name.replace('_', ' ')}: "
                    f"{settings.get(name)}, not {value}; give the same again, or delete it"
                )

    def begin(self, rows: int) -> None:
        """Keep so many rows, to add to them."""
        if not self._ends:
            line = json.dumps(self._settings) + "\n"
            with named(self.path):
                self.path.write_text(line, encoding="utf-8")
            self._ends = [len(line.encode())]
        self._ends = self._ends[: 1 + rows]
        os.truncate(self.path, self._ends[-1])

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows; they are safe from here on."""
        with named(self.path), open(self.path, "ab") as file:
            for row in rows:
                file.write(json.dumps(row).encode() + b"\n")
                self._ends.append(file.tell())

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in order."""
        with open(self.path, "rb") as file:
            next(file)
            yield from map(json.loads, file)

    def finish(self, columns: Mapping[str, str]) -> None:
        """Write the table, and remove the draft."""
        write_table(self.output, columns, self.rows())
        self.remove()

    def remove(self) -> None:
        """Remove the draft."""
        self.path.unlink()
