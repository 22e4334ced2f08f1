"""The commands. Each file here parses, calls the library and prints; nothing else."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import typer
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.utils import disable_progress_bars
from typer.core import TyperGroup

from dynamicvit._version import __version__
from dynamicvit.cli.console import StoppedError
from dynamicvit.errors import InputError


class _Commands(TyperGroup):
    """The commands, with a word on Ctrl-C, which typer would swallow."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, typer.Abort):
            raise StoppedError(_INTERRUPTED) from None


_INTERRUPTED = "interrupted; nothing half-written is left, run it again"

app = typer.Typer(
    name="dynamicvit",
    cls=_Commands,
    help="Faster vision transformers: learn which patches matter, drop the rest.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # or the line breaks of docstrings stay
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"dynamicvit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    del version


def main() -> None:
    """Run a command; bad input becomes one line on standard error and exit code 2."""
    if not sys.stderr.isatty() and HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()  # the Hub's, and those of transformers, which asks the Hub
    try:
        # Imported here, so that `import dynamicvit.cli.train` from a test does not register twice.
        from dynamicvit.cli import commands  # noqa: F401

        # Not standalone: errors come out here, and not in a box of several lines.
        sys.exit(app(standalone_mode=False) or 0)
    except (InputError, OSError) as error:
        if os.environ.get("DYNAMICVIT_TRACEBACK"):
            raise
        _fail(str(error), 2)
    except (KeyboardInterrupt, StoppedError) as error:
        _fail(str(error) or _INTERRUPTED, getattr(error, "code", 130))
    except Exception as error:
        # A usage error of click's, which newer typer carries in its own copy: known by what it can.
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        _fail(_usage(error), error.exit_code)


def _usage(error: Any) -> str:
    """A usage error in words, with the value, which newer typer leaves out."""
    message = error.format_message().replace("Value error, ", "")
    problems = getattr(error.__cause__, "errors", None)  # pydantic's, under newer typer
    if problems is None:
        return message
    value = repr(problems()[0]["input"])
    return message if value in message else f"{message}, got {value}"


def _fail(message: str, code: int) -> NoReturn:
    if message.strip():  # empty where the help has been printed, for a command without arguments
        typer.echo(f"dynamicvit: {' '.join(message.splitlines())}", err=True)
    sys.exit(code)
