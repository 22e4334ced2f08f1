"""`dynamicvit app`: a page in the browser that shows what a model looks at."""

from __future__ import annotations

import signal
import threading
import webbrowser
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dynamicvit.app import Choices
from dynamicvit.app.inputs import Inputs
from dynamicvit.app.page import Page
from dynamicvit.app.server import serving
from dynamicvit.checkpoints.loading import set_image_size
from dynamicvit.cli.console import StoppedError, say
from dynamicvit.cli.inference import load_at_budget, say_if_untrained
from dynamicvit.cli.options import (
    AddOn,
    Checkpoint,
    ClassNames,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Method,
    Model,
    ModelArgument,
    NoPretrained,
    Policy,
    Released,
    ScheduleOption,
    Threads,
    check_one_model,
    chosen_model,
    one_name,
    parse_image_size,
    use_threads,
)
from dynamicvit.data import read_class_names
from dynamicvit.data.class_names import check_class_names
from dynamicvit.demo import load_dense
from dynamicvit.errors import InputError
from dynamicvit.sparsification import DEFAULT_KEEP_RATIO, sparsify
from dynamicvit.tuning.tuner import PICTURE, SCHEDULE

_SERVER = "Server"


def app_command(
    model_argument: ModelArgument = None,
    model_name: Model = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            help="Folder of dynamicvit tune: its schedule, and its frontier as a picture.",
            readable=False,
        ),
    ] = None,
    policy: Policy = None,
    method: Method = None,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    class_names: ClassNames = None,
    no_pretrained: NoPretrained = False,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; by default this machine alone can see the page.",
            rich_help_panel=_SERVER,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="0 for any that is free.", min=0, rich_help_panel=_SERVER)
    ] = 7860,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the browser.", rich_help_panel=_SERVER)
    ] = False,
    threads: Threads = None,
) -> None:
    """Show in a browser what MODEL looks at: drop an image in, move the budget.

    Dense and sparse side by side: kept patches, classes, milliseconds and MACs of this very run,
    with each method that works on the model. Without a MODEL it is the demo's, which reads digits.

    Example: dynamicvit app --model runs/mine
    """
    size = parse_image_size(image_size)
    names = None if class_names is None else read_class_names(class_names)
    use_threads(threads)
    if port > 65535:
        raise InputError(f"--port {port}: a port is at most 65535")
    frontier = None
    if tuned is not None:
        given = {"--keep-ratio": keep_ratio, "--schedule": schedule, "--policy": policy}
        for option, value in given.items():
            if value is not None:
                raise InputError(f"{option} {value} and --tuned {tuned}: give one")
        schedule = tuned / SCHEDULE if tuned.is_dir() else tuned
        frontier = schedule.with_name(PICTURE)
        frontier = frontier if frontier.is_file() else None
    name = one_name(model_argument, model_name)
    if name is None and released is None:
        for option, value in {"--checkpoint": checkpoint, "--addon": addon}.items():
            if value is not None:
                raise InputError(f"{option} {value} is for a model: give --model")
        ratio = DEFAULT_KEEP_RATIO if keep_ratio is None else keep_ratio
        model = sparsify(load_dense(), ratio, policy=policy, method=method, schedule=schedule)
        model, size = model.eval(), set_image_size(model, size)
    else:
        check_one_model(name, released)
        model, size = load_at_budget(
            chosen_model(name, released),
            checkpoint=checkpoint,
            addon=addon,
            keep_ratio=keep_ratio,
            schedule=schedule,
            policy=policy,
            method=method,
            image_size=size,
            pretrained=not no_pretrained,
        )
    if names is not None:
        check_class_names(names, model.num_classes)
    title = name or released
    inputs = Inputs(model, size, crop_pct, scenes=title is None)
    page = Page(Choices(model), inputs, title or "the demo's network", names)
    console = Console()
    with serving(page, host, port, frontier) as url:
        say_if_untrained(page.title, model)
        say(console, f"{url} (Ctrl-C ends it)")
        if not _is_loopback(host):
            say(console, f"note: whoever reaches {host} can use it: it asks for no password")
        if open_browser and not webbrowser.open(url):
            say(console, f"no browser was found: open {url} in one")
        try:
            threading.Event().wait()
        except KeyboardInterrupt as stop:
            signum = getattr(stop, "signum", signal.SIGINT)
            raise StoppedError("stopped; nothing that was uploaded is kept", signum) from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
