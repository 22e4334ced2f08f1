"""The commands. Each file here parses, calls the library and prints; nothing else."""

from __future__ import annotations

import os
import sys

import typer

from dynamicvit._version import __version__
from dynamicvit.errors import InputError

app = typer.Typer(
    name="dynamicvit",
    help="Faster vision transformers: learn which patches matter, drop the rest.",
    no_args_is_help=True,
    add_completion=False,
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
    # Imported here, so that `import dynamicvit.cli.train` from a test does not register twice.
    from dynamicvit.cli import commands  # noqa: F401

    try:
        # Not standalone: typer would swallow Ctrl-C without a word.
        sys.exit(app(standalone_mode=False) or 0)
    except (InputError, OSError) as error:
        if os.environ.get("DYNAMICVIT_TRACEBACK"):
            raise
        typer.echo(f"dynamicvit: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("dynamicvit: interrupted; nothing half-written is left, run it again", err=True)
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # a usage error of click, which newer typer carries in its own copy
        sys.exit(error.exit_code)
