"""What several commands print, check and write in the same way."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import typer
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynamicvit.errors import InputError
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.files import write_text
from dynamicvit_command import StoppedError as StoppedError
from dynamicvit_command import print_error as print_error


def hide_bars_in_logs() -> None:
    """Leave the Hub's progress bars out where standard error is no terminal.

    Those of transformers as well, which asks the Hub.
    """
    if not sys.stderr.isatty() and HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()


def main_console(processes: Processes, *, stderr: bool = False) -> Console:
    """Where the main process prints; the others keep quiet."""
    return Console(stderr=stderr, quiet=not processes.is_main)


def say(console: Console, line: str) -> None:
    """Print a line as it is: not colored, not wrapped where there is no terminal."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_bar(console: Console | None = None, *, transient: bool = True) -> Progress:
    """How much is done, a note, and the time left; its tasks have a field ``note``.

    Args:
        console: where; by default standard error, so that the output can be piped.
        transient: take the bar away when all is done.

    Returns:
        A bar that shows itself on a terminal only.
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
    """Where there is no terminal for a bar, a line at times: what a cluster's log shows of a run.

    Args:
        console: where.
        seconds: between two lines.
    """

    def __init__(self, console: Console, seconds: float = 60.0) -> None:
        self.console = console
        self.seconds = seconds
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        """Print the line, unless it is too soon, or a bar says it all."""
        if not self.console.is_terminal and time.monotonic() - self._last >= self.seconds:
            self._last = time.monotonic()
            say(self.console, line)


def check_folder(folder: Path, option: str = "--output") -> None:
    """Find out before the work whether files can be written into a folder; make nothing.

    Args:
        folder: where they will go.
        option: that names it.

    Raises:
        InputError: if it is a file, or must not be written.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"{option} {folder}: {existing} is not a folder; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{option} {folder}: no permission to write in {existing}")


def check_json(json_file: str | None) -> None:
    """Find out before the work whether the file of ``--json`` can be written.

    Raises:
        InputError: if it is a folder, lies in none, or must not be written.
    """
    if json_file is not None and json_file != "-":
        check_file("--json", json_file)


def check_file(option: str, file: str | Path) -> None:
    """Find out before the work whether the file that an option names can be written.

    Raises:
        InputError: if it is a folder, lies in none, or must not be written.
    """
    path = Path(file)
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{option} {path}: no permission to write there")


def write_json(json_file: str | Path | None, numbers: dict[str, Any]) -> None:
    """Write numbers into a file, whole or not at all; ``"-"`` prints them, ``None`` discards."""
    if json_file is None:
        return
    text = json.dumps(numbers, indent=2) + "\n"
    if json_file == "-":
        typer.echo(text, nl=False)
        return
    write_text(json_file, text)
