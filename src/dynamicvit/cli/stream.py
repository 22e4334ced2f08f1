"""`dynamicvit stream`: classify or segment a video, a camera or a folder, frame by frame."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dynamicvit.cli.console import StoppedError, check_file, check_json, say_left_out
from dynamicvit.cli.inference import load_for_inference, refuse_with_schedule, say_if_untrained
from dynamicvit.cli.options import (
    AddOn,
    Checkpoint,
    CropPct,
    ImageSizeOption,
    Method,
    Models,
    NoPretrained,
    Policy,
    Precision,
    Released,
    ScheduleOption,
    Threads,
    check_one_model,
    chosen_model,
    parse_image_size,
    parse_latency,
    use_threads,
)
from dynamicvit.cli.stream_view import View, print_summary
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import segments
from dynamicvit.data.folders import other_files
from dynamicvit.errors import InputError
from dynamicvit.runtimes import ExportedModel
from dynamicvit.streaming import RATIOS, Answer, Stream, open_frames
from dynamicvit.streaming.overlay import VIDEOS, overlay_video
from dynamicvit.utils.files import open_output
from dynamicvit.utils.outputs import WRITER
from dynamicvit.utils.precision import autocast_dtype
from dynamicvit.utils.signals import stop_requests

Write = Callable[[dict[str, Any]], None]


def stream_command(
    source_name: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video file, a folder of images, or a camera: camera:0, /dev/video0.",
        ),
    ],
    model_names: Models = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames a second; 0 for as fast as they are classified, none dropped. By default "
            "the rate of a video or camera, and 0 for a folder."
        ),
    ] = None,
    target_latency: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Latency to hold by changing the keep ratio, such as 20ms."
        ),
    ] = None,
    keep_ratio: Annotated[
        list[float] | None,
        typer.Option(
            help="Keep ratio ρ; repeated, those for --target-latency "
            f"(by default {', '.join(map(str, RATIOS))})."
        ),
    ] = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    queue: Annotated[
        int,
        typer.Option(
            help="Frames that may wait; when it is full, one is dropped.", rich_help_panel="Stream"
        ),
    ] = 2,
    top: Annotated[int, typer.Option(help="Classes in each answer.", rich_help_panel="Stream")] = 1,
    lines_file: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON lines; - prints them.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Likewise; ending in .mp4 or .mkv, a video of the maps of a segmentation model.",
        ),
    ] = None,
    precision: Precision = "fp32",
    threads: Threads = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Frames from one of a clip to the next, for a model of clips.",
            rich_help_panel="Stream",
        ),
    ] = None,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    no_pretrained: NoPretrained = False,
) -> None:
    """Classify the frames of SOURCE in order, and drop those that come too late.

    A model of clips classifies the last frames, as a window that slides by one.
    A segmentation model gives a map of each frame; -o clip.mp4 writes them over the frames. The
    model may be an exported file. With --target-latency, --model may be repeated, for models
    of several keep ratios.

    Example: dynamicvit stream video.mp4 --model runs/mine --target-latency 20ms
    """
    target = parse_latency(target_latency)
    size = parse_image_size(image_size)
    lines_file, video = _outputs(lines_file, output)
    use_threads(threads)
    files = {"--checkpoint": checkpoint, "--addon": addon}
    _check_choice(model_names, released, files, keep_ratio, target)
    refuse_with_schedule(schedule, keep_ratio=keep_ratio, target_latency=target_latency)
    source = open_frames(source_name, fps)
    models, size = _load(
        model_names or [chosen_model(None, released)],
        checkpoint=checkpoint,
        addon=addon,
        image_size=size,
        precision=precision,
        schedule=schedule,
        policy=policy,
        method=method,
        pretrained=not no_pretrained,
    )
    if video is not None and not segments(next(iter(models.values()))):
        raise InputError(f"--output {video}: a video is of a segmentation model's maps")
    console = Console(stderr=lines_file == "-")
    with stop_requests() as request:
        stream = Stream(
            source,
            models,
            fps=fps,
            target_latency=target,
            keep_ratios=keep_ratio or (),
            queue=queue,
            top=top,
            precision=autocast_dtype(precision),
            stride=stride,
            image_size=size,
            crop_pct=crop_pct,
            stopped=lambda: bool(request.signum),
        )
        with _writer(lines_file) as write, _drawer(video, stream) as draw:
            settings = {**stream.settings, "source": source_name, "precision": precision}
            write({"event": "start", "written_by": WRITER, **settings})
            problem = _run(stream, write, draw, console)
            ended = "broken" if problem else "interrupted" if request.signum else "complete"
            summary = stream.summary()
            write({"event": "end", "ended": ended, **summary})
    print_summary(console, source_name, summary)
    if Path(source_name).is_dir():
        say_left_out(console, other_files(Path(source_name)))
    if problem is not None:
        raise problem
    if request.signum:
        raise StoppedError(f"stopped after {summary['frames']} frames", request.signum)
    if not summary["frames"] + summary["unreadable"]:
        raise InputError(f"{source_name} holds no frames")
    if summary["unreadable"]:
        raise typer.Exit(2)


def _check_choice(
    models: list[str] | None,
    released: str | None,
    files: dict[str, Path | None],
    keep_ratios: list[float] | None,
    target: float | None,
) -> None:
    """Refuse options that conflict, before anything is loaded."""
    check_one_model(models[0] if models else None, released)
    models, keep_ratios = models or [], keep_ratios or []
    several = len(models) > 1
    for option, file in files.items():
        if several and file is not None:
            raise InputError(f"{option} {file} is for one model, got {', '.join(models)}")
    if several and keep_ratios:
        raise InputError(
            f"--keep-ratio {keep_ratios[0]} is for one model, got {', '.join(models)}: each has "
            "its own"
        )
    if target is None and (several or len(keep_ratios) > 1):
        given = ", ".join(models if several else map(str, keep_ratios))
        raise InputError(f"{given}: give only one, or --target-latency to choose among them")


def _load(
    names: list[str], *, image_size: tuple[int, int] | None, **options: Any
) -> tuple[dict[str, DynamicViT | ExportedModel], tuple[int, int]]:
    """The models by name, and the height and width of the images for all of them."""
    models, sizes = {}, []
    for name in names:
        models[name], size = load_for_inference(name, image_size=image_size, **options)
        if sizes and size != sizes[0]:
            raise InputError(
                f"{names[0]} and {name} can't take turns: images of {sizes[0][0]}x{sizes[0][1]} "
                f"and {size[0]}x{size[1]} pixels"
            )
        say_if_untrained(name, models[name])
        sizes.append(size)
    return models, sizes[0]


def _outputs(lines: str | None, output: str | None) -> tuple[str | None, Path | None]:
    """Where JSON lines and the video go."""
    video = output if output and Path(output).suffix.lower() in VIDEOS else None
    if video is None and output is not None:
        if lines is not None:
            raise InputError(f"--json {lines} and --output {output} are both for JSON lines")
        lines = output
    check_json(lines)
    if video is not None:
        check_file("--output", Path(video))
    return lines, None if video is None else Path(video)


def _run(
    stream: Stream, write: Write, draw: Callable[[Answer], None], console: Console
) -> Exception | None:
    """Write, draw and show all events; returns the error that ended them, if any."""
    try:
        # Closing ends the reading thread even if an event can't be written.
        with View(console, stream.tally) as view, closing(iter(stream)) as events:
            for event in events:
                write(event.as_dict())
                if isinstance(event, Answer):
                    draw(event)
                view.show(event, stream.dropped)
    except StoppedError:
        raise
    except Exception as error:
        return error
    return None


@contextmanager
def _drawer(video: Path | None, stream: Stream) -> Iterator[Callable[[Answer], None]]:
    """A function that writes an answer's map over its frame."""
    if video is None:
        yield lambda answer: None
    else:
        with overlay_video(video, stream.rate, stream.names) as file:
            yield file.add


@contextmanager
def _writer(file: str | None) -> Iterator[Write]:
    """A function that writes an object as a line, unbuffered."""
    if file is None:
        yield lambda found: None
    elif file == "-":
        yield _print_line
    else:
        with open_output(file) as lines:
            yield lambda found: print(json.dumps(found), file=lines)


def _print_line(found: dict[str, Any]) -> None:
    try:
        print(json.dumps(found), flush=True)
    except BrokenPipeError:  # as of `| head`
        # At its end Python would try again to write its buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message = "stopped: standard output was closed"
        raise StoppedError(message, getattr(signal, "SIGPIPE", signal.SIGTERM)) from None
