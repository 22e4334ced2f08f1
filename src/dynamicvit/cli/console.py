"""Printing, checks of paths and JSON that commands share."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynamicvit.data.folders import left_out_in_words
from dynamicvit.errors import InputError
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.files import remove_unfinished, write_text
from dynamicvit.utils.outputs import WRITER, check_target
from dynamicvit_command import StoppedError as StoppedError
from dynamicvit_command import print_error as print_error


def hide_bars_in_logs() -> None:
    """Hide the Hub's progress bars, and so those of transformers, unless stderr is a terminal."""
    if not sys.stderr.isatty() and HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()


def main_console(processes: Processes, *, stderr: bool = False) -> Console:
    """The console of the main process; the others are quiet."""
    return Console(stderr=stderr, quiet=not processes.is_main)


def say(console: Console, line: str) -> None:
    """Print a line as it is, without colors or line breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def percents(shares: Iterable[float]) -> str:
    """Shares as ``70, 49, 34.3 %``."""
    return ", ".join(f"{100 * share:.3g}" for share in shares) + " %"


def say_left_out(console: Console, left_out: Sequence[str]) -> None:
    """Count and name the files beside the images that are none, in one line, if there are any."""
    if left_out:
        say(console, left_out_in_words(left_out))


def progress_bar(console: Console | None = None, *, transient: bool = True) -> Progress:
    """A progress bar on terminals only; its tasks have a field ``note``.

    Args:
        console: by default standard error, so that the output can be piped.
        transient: remove the bar at the end.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=console.quiet or not console.is_terminal,
    )


class LineNowAndThen:
    """A line a minute in place of a bar, for the log of a run without a terminal."""

    def __init__(self, console: Console, seconds: float = 60.0) -> None:
        self.console = console
        self.seconds = seconds
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """Print the line, unless it is too soon or on a terminal."""
        if not self.console.is_terminal and time.monotonic() - self._last >= self.seconds:
            self._last = time.monotonic()
            say(self.console, line)


def check_folder(folder: Path, option: str = "--output", names: Iterable[str] = ()) -> None:
    """Check before the work that files can be written into an option's folder; make nothing.

    What a killed command left half-written there goes.

    Args:
        folder: need not be there.
        option: that named it.
        names: of the files that will be written.

    Raises:
        InputError: for a file, or a folder without permission to write; as
            :func:`~dynamicvit.utils.outputs.check_target` for the files.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{option} {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{option} {folder}: no permission to write in {existing}")
    for name in names:
        if os.path.lexists(folder / name):
            check_target(folder / name, option)
    remove_unfinished(folder)


def check_json(json_file: str | None) -> None:
    """:func:`check_file` for ``--json``, which may be ``-`` or missing."""
    if json_file not in (None, "-"):
        check_file("--json", json_file)


def check_file(option: str, file: str | Path, start: bytes = b"") -> None:
    """Check before the work that an option's file can be written.

    What a killed command left half-written there goes.

    Raises:
        InputError: as :func:`~dynamicvit.utils.outputs.check_target`.
    """
    check_target(file, option, start=start)
    remove_unfinished(Path(os.path.realpath(file)).parent)


def write_json(json_file: str | Path | None, numbers: dict[str, Any]) -> None:
    """Write numbers into a file, whole or not at all; ``"-"`` prints them, None discards them."""
    text = json.dumps({"written_by": WRITER, **numbers}, indent=2)
    if json_file == "-":
        typer.echo(text)
    elif json_file is not None:
        write_text(json_file, text + "\n")
