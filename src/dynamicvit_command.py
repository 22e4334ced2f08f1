"""The ``dynamicvit`` command: its subcommands by name, each imported when it is called.

This file lies beside the package, not inside it: whatever imports a part of a package imports its
``__init__`` first, here torch and timm, and ``--help`` must not wait for those.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "demo": ("demo:demo", "Find the digit: drop most of a cluttered scene and still read it."),
    "train": ("train:train", "Fine-tune a model with the dense model as its teacher, or another."),
    "eval": ("evaluate:eval_command", "Top-1 and top-5, or mIoU; agreement with the dense one."),
    "predict": ("predict:predict_command", "Classes and kept shares of images, as a table."),
    "bench": ("bench:bench_command", "Time a model dense and pruned, in turn."),
    "compare": ("compare:compare", "Compare DynamicViT with other methods on your model and data."),
    "tune": ("tune:tune_command", "Find where and how much to drop for a target."),
    "calibrate": ("calibrate:calibrate", "Let hard images keep more patches than easy ones."),
    "visualize": ("visualize:visualize", "Show which patches of an image a model keeps."),
    "export": ("export:export", "Write a model as a file for other runtimes, and check it."),
    "app": ("app_command:app_command", "Show in a browser what a model looks at."),
    "stream": ("stream:stream_command", "Classify a video, a camera or a folder frame by frame."),
    "info": ("info:info", "Say what a model is: classes, schedule, cost, training, input."),
    "convert": ("convert:convert", "Convert a checkpoint of the original DynamicViT code."),
    "backbones": ("backbones:backbones_command", "Print what every registered model costs."),
}
"""For each command its function in ``dynamicvit.cli``, and its line in the list of commands."""

_STYLE: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": "markdown",  # or the line breaks of docstrings stay
    "pretty_exceptions_enable": False,
}
_INTERRUPTED = "interrupted; nothing half-written is left, run it again"

#: What torch says where there is not enough memory.
_NO_MEMORY = r"(?i)out of memory|not enough memory|can't allocate memory|Invalid buffer size"

UNFORESEEN = 70
"""Exit code of an error that nobody has foreseen (EX_SOFTWARE): a bug, to be reported."""


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does: what is half-written goes.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


class StoppedError(Exception):
    """Ctrl-C or SIGTERM; the message says what was saved and how to resume.

    Attributes:
        code: the exit code, 128 plus the signal's number.
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + signum


def without_types(parameters: list[Any]) -> list[Any]:
    """The parameters, of which ``--help`` shows no type that says nothing.

    A switch takes no value, and an argument's name says what it is.
    """
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        elif parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None  # newer typer's
    return parameters


class _Command(TyperCommand):
    """An entry of the list of commands, whose command is imported when it is called."""

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name, help=help)
        self.target = target

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the command itself."""
        gc.disable()  # nothing is garbage yet, and looking for it takes a tenth of the time
        from dynamicvit.cli.command import Command, with_common_options
        from dynamicvit.cli.console import hide_bars_in_logs

        hide_bars_in_logs()
        module, function = self.target.split(":")
        app = typer.Typer(**_STYLE)
        called = getattr(import_module(f"dynamicvit.cli.{module}"), function)
        gc.enable()
        app.command(self.name, cls=Command)(with_common_options(called))
        return typer.main.get_command(app).make_context(*args, **kwargs)


class _Commands(TyperGroup):
    """All commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: _Command(name, *about) for name, about in COMMANDS.items()}

    def get_params(self, ctx: Any) -> Any:
        """The options of the program itself."""
        return without_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C, which typer would swallow, becomes an error."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort) as stop:
            signum = getattr(stop, "signum", signal.SIGINT)
            raise StoppedError(_INTERRUPTED, signum) from None


app = typer.Typer(
    name="dynamicvit",
    cls=_Commands,
    help="Faster vision transformers: learn which patches matter, drop the rest.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **_STYLE,
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"dynamicvit {version('dynamicvit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    del version


def main() -> None:
    """Run a command, and end with its exit code.

    Bad input becomes one line on standard error and exit code 2. An error that nobody has foreseen
    becomes a line and :data:`UNFORESEEN`; its traceback goes into a file, or with ``--debug`` onto
    standard error.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name need not be in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    with _signals() as received:
        try:
            # Not standalone: errors are raised, and not printed in a box of several lines.
            sys.exit(app(standalone_mode=False) or 0)
        except SystemExit:
            raise
        except BaseException as error:
            if "--debug" in sys.argv:
                traceback.print_exc()
            if received and not isinstance(error, StoppedError):  # whatever became of it
                _fail(_INTERRUPTED, 128 + received[0])
            if isinstance(error, KeyboardInterrupt | StoppedError):
                _fail(str(error) or _INTERRUPTED, getattr(error, "code", 130))
            # A usage error of click, or of newer typer's own copy of click.
            if hasattr(error, "format_message") and hasattr(error, "exit_code"):
                _fail(_usage(error), error.exit_code)  # pyright: ignore[reportAttributeAccessIssue]
            # Imported here: only a command, which has imported the package, raises one.
            from dynamicvit.errors import InputError
            from dynamicvit.utils.words import first_line

            if isinstance(error, InputError | OSError):
                _fail(str(error), 2)
            if isinstance(error, MemoryError) or re.search(_NO_MEMORY, str(error)):
                _fail(f"out of memory ({first_line(error)}): give smaller batches or images", 2)
            _fail(_unforeseen(error), UNFORESEEN)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP raise :class:`TerminatedError`; yields those that came."""
    received: list[int] = []
    process, before = os.getpid(), {}

    def end(signum: int, frame: object) -> None:
        if os.getpid() != process:  # a fork, which has nothing to put in order
            os._exit(128 + signum)
        received.append(signum)
        raise TerminatedError(signum)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # One that is ignored stays so, as nohup wants.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unforeseen(error: BaseException) -> str:
    """An error's name and place, and where its traceback is."""
    last = (traceback.extract_tb(error.__traceback__) or [None])[-1]
    place = "" if last is None else f" in {Path(last.filename).name}, line {last.lineno}"
    name = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line = f"unforeseen {name[:300]}{place}; this is a bug"
    if "--debug" in sys.argv:
        return line
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="dynamicvit-traceback-",
            suffix=".txt",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.write(f"{sys.argv}\n")
            traceback.print_exception(error, file=file)
    except OSError:
        return f"{line}: --debug prints the traceback"
    return f"{line}: its traceback is in {file.name}, --debug prints it"


def print_error(message: object) -> None:
    """Print an error on standard error, as one line with the program's name."""
    typer.echo(f"dynamicvit: {' '.join(str(message).splitlines())}", err=True)


def _usage(error: Any) -> str:
    """A usage error's message with the value, which newer typer leaves out."""
    message = error.format_message().replace("Value error, ", "")
    problems = getattr(error.__cause__, "errors", None)  # pydantic's, under newer typer
    if problems is None:
        return message
    value = repr(problems()[0]["input"])
    return message if value in message else f"{message}, got {value}"


def _fail(message: str, code: int) -> NoReturn:
    if message.strip():  # empty after the help of a command without arguments
        print_error(message)
    sys.exit(code)
