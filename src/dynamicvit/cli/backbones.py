"""`dynamicvit backbones`: what every registered model costs, as the page in docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynamicvit.checkpoints.timm_names import BACKBONES
from dynamicvit.cli.console import check_file, progress_bar
from dynamicvit.errors import InputError
from dynamicvit.evaluation.catalog import check_page, entry_for, page
from dynamicvit.utils.files import write_text


def backbones_command(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write the page into.", readable=False),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Compare this file with a fresh page instead.", readable=False),
    ] = None,
) -> None:
    """Print what every registered model costs: parameters, MACs and kept patches, in Markdown.

    Example: dynamicvit backbones -o backbones.md
    """
    if output is not None and check is not None:
        raise InputError(f"--output {output} writes and --check {check} only reads: give one")
    if output is not None:
        check_file("--output", output)
    entries = []
    with progress_bar() as bar:
        task = bar.add_task("backbones", total=len(BACKBONES), note="")
        for backbone in BACKBONES:
            bar.update(task, note=backbone)
            entries.append(entry_for(backbone))
            bar.advance(task)
    text = page(entries)
    if check is not None:
        check_page(check, text)
        typer.echo(f"{check} is up to date")
    elif output is not None:
        write_text(output, text)
    else:
        typer.echo(text, nl=False)
