"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights for a timm name: .safetensors or .pth.")
]
ClassMapOption = Annotated[
    str | None,
    typer.Option("--class-map", help="'imagenet', or a file with one folder name a line."),
]
Precision = Annotated[Literal["fp32", "bf16"], typer.Option(help="bf16 runs under autocast.")]
Strict = Annotated[bool, typer.Option(help="An unreadable image is an error.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch; all cores by default.")
]
