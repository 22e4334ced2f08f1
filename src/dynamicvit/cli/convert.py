"""`dynamicvit convert`: a checkpoint of the authors becomes a folder that every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dynamicvit.checkpoints.released import Recognized, download, recognize, release_of
from dynamicvit.cli.console import check_folder, percents, say
from dynamicvit.cli.inference import refuse_with_schedule
from dynamicvit.cli.options import KeepRatio, Released, ScheduleOption
from dynamicvit.core.hub import MODEL_FILES
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule_file import ScheduleFile
from dynamicvit.costs import DENSE, schedule_macs
from dynamicvit.errors import InputError
from dynamicvit.sparsification import DEFAULT_KEEP_RATIO


def convert(
    output: Annotated[
        Path,
        typer.Option(
            "--out", "--output", "-o", help="Folder to write into; made if needed.", readable=False
        ),
    ],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="The checkpoint: .pth or .safetensors.", metavar="FILE", readable=False
        ),
    ] = None,
    released: Released = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Attention heads; for a size that the paper lacks.")
    ] = None,
    residual_divisor: Annotated[
        float | None,
        typer.Option(help="Divisor of residual branches; for an LV-ViT of another size."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the moving average (EMA) of the weights.")
    ] = False,
) -> None:
    """Write a checkpoint of the original DynamicViT code as a folder for --model.

    The network is recognized by names and shapes. Its keep ratio comes from --keep-ratio, else from
    the file's metadata or name (dynamic-vit_384_r0.7.pth).

    Example: dynamicvit convert dynamic-vit_384_r0.7.pth -o runs/released
    """
    check_folder(output, "--out", MODEL_FILES)
    if (file is None) == (released is None):
        raise InputError("give either the checkpoint's FILE or --released NAME")
    release = None if released is None else release_of(released)
    refuse_with_schedule(schedule, keep_ratio=keep_ratio)
    shares = None if schedule is None else ScheduleFile.load(schedule)
    source = file if release is None else download(release.name)
    ratio = keep_ratio if shares is None else DEFAULT_KEEP_RATIO  # the schedule replaces it
    found = recognize(source, ratio, num_heads, residual_divisor=residual_divisor, ema=ema)
    model = found.build()
    if shares is not None:
        model.schedule = ScheduleFile.of(shares, model.depth).schedule
    _report(Console(), found, model)
    model.save_pretrained(output)
    typer.echo(f"saved {output}: dynamicvit eval DATA --model {output}")


def _report(console: Console, found: Recognized, model: DynamicViT) -> None:
    stages = ", ".join(map(str, model.schedule.stages))
    say(console, f"{found.weights.source}: {found.name}, prediction modules before blocks {stages}")
    kept = percents(model.schedule.keep_ratios)
    say(console, f"keeps {kept} of the patches ({found.keep_ratio_from})")
    copy, ema = found.weights.copy, found.weights.ema
    if copy or ema:
        other = f"; --ema takes its moving average {ema}" if ema else ""
        say(console, f"weights from {copy or 'the file itself'}{other}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dense, pruned = schedule_macs(model, DENSE), schedule_macs(model, model.schedule)
    say(
        console,
        f"{parameters / 1e6:.2f} M parameters; {pruned / 1e9:.2f} GMACs an image with the "
        f"prediction modules, {dense / 1e9:.2f} dense",
    )
