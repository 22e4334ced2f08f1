"""Options that several commands share, and the parsers of their text.

Typer checks neither paths (``readable=False``) nor bounds of numbers: the library does, with an
error of one line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from dynamicvit.budgets import parse_latency as parse_latency
from dynamicvit.checkpoints.released import RELEASES, download, release_of
from dynamicvit.data import Views
from dynamicvit.errors import InputError
from dynamicvit.utils.fields import MOST_SIDE
from dynamicvit.utils.words import shortened

#: Panels of ``--help``, below the common options.
WEIGHTS, IMAGES, COST = "Weights", "Images", "Speed and memory"

_MODEL_FLAGS = ("--model", "-m")
_MODEL = "timm's name, a saved folder, a released checkpoint, user/name on the Hub"
_FILE = f"{_MODEL}, or an exported file"

_SOURCE = typer.Argument(
    metavar="DATA",
    help="Folder of class folders, a .tar of them, a flat folder; or wds/PLACE (WebDataset; a "
    "URL too), hfds/PLACE (Hugging Face; hfids/ file by file), torch/NAME/FOLDER (torchvision); "
    "@SPLIT may follow.",
)
Data = Annotated[str, _SOURCE]
DataIfAny = Annotated[str | None, _SOURCE]
Unlabeled = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DATA",
        help="More images, named as DATA is, without labels; may be repeated.",
        rich_help_panel=IMAGES,
    ),
]
Model = Annotated[str | None, typer.Option(*_MODEL_FLAGS, metavar="NAME", help=f"{_MODEL}.")]
ModelOrFile = Annotated[str | None, typer.Option(*_MODEL_FLAGS, metavar="NAME", help=f"{_FILE}.")]
ModelArgument = Annotated[str | None, typer.Argument(metavar="MODEL", help="The same as --model.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        *_MODEL_FLAGS,
        metavar="NAME",
        help=f"{_FILE}; may be repeated.",
    ),
]
Released = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Download the authors' checkpoint, once: {', '.join(RELEASES)}.",
        rich_help_panel=WEIGHTS,
    ),
]
ModelOrRecipes = Annotated[
    str | None,
    typer.Option(*_MODEL_FLAGS, metavar="NAME", help=f"{_MODEL}; by default the recipe's."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights for the model: .safetensors or .pth.", readable=False, rich_help_panel=WEIGHTS
    ),
]
AddOn = Annotated[
    Path | None,
    typer.Option(
        "--addon",
        help="Prediction modules for a dense model: addon.safetensors of train --freeze-backbone.",
        readable=False,
        rich_help_panel=WEIGHTS,
    ),
]
NoPretrained = Annotated[
    bool,
    typer.Option(
        "--no-pretrained",
        help="Random weights where timm's would be loaded.",
        rich_help_panel=WEIGHTS,
    ),
]
KeepRatio = Annotated[
    float | None, typer.Option(help="Share of patches to keep, ρ: the stages keep ρ, ρ², ρ³, ...")
]
ScheduleOption = Annotated[
    Path | None,
    typer.Option(
        "--schedule",
        help="In place of a keep ratio and policy: a file of dynamicvit tune.",
        readable=False,
    ),
]
Policy = Annotated[
    Literal["merged", "removed", "bypassed", "cheap"] | None,
    typer.Option(
        help="What becomes of dropped tokens; by default what the model was trained for, for a "
        "dense model what its method does: merged for dynamicvit. ConvNeXt and Swin have cheap."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How a dense model chooses tokens: lookahead, dynamicvit, tome, ...",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        help="Round each stage's tokens to whole tiles of this many, 16 for AMX.",
        rich_help_panel=COST,
    ),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder to write into; made if needed.", readable=False),
]
ClassMapOption = Annotated[
    str | None,
    typer.Option(
        "--class-map",
        metavar="NAME",
        help="Order of the model's classes: 'imagenet', or a file with one class name a line.",
        rich_help_panel=IMAGES,
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        help="File with one class name a line, in class order.",
        readable=False,
        rich_help_panel=IMAGES,
    ),
]
ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="SIZE",
        help="Pixels, 384 or 224x320 (height x width); by default the model's.",
        rich_help_panel=IMAGES,
    ),
]
Frames = Annotated[
    int | None,
    typer.Option(
        help="Make timm's image network one of clips of so many frames.",
        rich_help_panel=IMAGES,
    ),
]
Tubelet = Annotated[
    int | None,
    typer.Option(help="Frames of a token, with --frames; by default 2.", rich_help_panel=IMAGES),
]
CropPct = Annotated[
    float | None,
    typer.Option(
        help="Share of the short side that the center crop takes; by default the model's.",
        rich_help_panel=IMAGES,
    ),
]
Precision = Annotated[
    Literal["fp32", "bf16"], typer.Option(help="bf16 runs under autocast.", rich_help_panel=COST)
]
Strict = Annotated[
    bool, typer.Option("--strict", help="An unreadable image is an error.", rich_help_panel=IMAGES)
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Pixels from window to window of a segmentation model, by default its side; of a "
        "clip frames from one to the next, by default over the whole video.",
        rich_help_panel=IMAGES,
    ),
]
ViewsOption = Annotated[
    str | None,
    typer.Option(
        "--views",
        metavar="CLIPSxCROPS",
        help="Average over clips of a video and 1 or 3 crops of each: 5x3; by default 1x1.",
        rich_help_panel=IMAGES,
    ),
]
Workers = Annotated[int, typer.Option(help="Processes that read images.", rich_help_panel=COST)]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads of torch; all cores by default.", rich_help_panel=COST),
]
JsonFile = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH", help="Write the numbers as JSON; - prints them."),
]


def chosen_model(model: str | None, released: str | None) -> str:
    """The name for ``load``: that of ``--model``, or the file of ``--released``.

    A release is downloaded if it is not in the cache, so check the other options first.

    Raises:
        InputError: if neither or both are given, or the release is unknown or can't be downloaded.
    """
    check_one_model(model, released)
    # The file: a file or folder of the user may have the release's name.
    return str(download(release_of(released).name)) if model is None else model


def one_name(argument: str | None, option: str | None) -> str | None:
    """The name of the argument MODEL, or that of ``--model``.

    Raises:
        InputError: if both are given.
    """
    if argument is not None and option is not None:
        raise InputError(f"{argument} and --model {option} both name a model: give one")
    return option if argument is None else argument


def check_one_model(model: str | None, released: str | None) -> None:
    """Check that one of ``--model`` and ``--released`` is given.

    Raises:
        InputError: if both or neither are.
    """
    if model is None and released is None:
        raise InputError("Missing option '--model', or '--released'.")
    if model is not None and released is not None:
        raise InputError(f"--model {model} and --released {released} both name a model: give one")


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """Height and width from ``384`` or ``224x320``.

    Raises:
        InputError: for any other text.
    """
    if text is None:
        return None
    found = re.fullmatch(r"0*([1-9]\d{0,4})(?:x0*([1-9]\d{0,4}))?", text.lower(), re.ASCII)
    sides = [int(side) for side in found.groups() if side] if found else []
    if not sides or max(sides) > MOST_SIDE:
        raise InputError(
            f"an image size is written 384 or 224x320, of at most {MOST_SIDE} pixels, got "
            f"{shortened(text)}"
        )
    return sides[0], sides[-1]


def parse_views(text: str | None) -> Views:
    """Clips and crops from ``5x3``.

    Raises:
        InputError: for any other text.
    """
    if text is None:
        return Views()
    found = re.fullmatch(r"([1-9]\d?)x([13])", text.lower(), re.ASCII)
    if found is None:
        raise InputError(
            f"views are clips of a video, up to 99, and 1 or 3 crops of each, as 5x3, got "
            f"{shortened(text)}"
        )
    return Views(int(found[1]), int(found[2]))


def use_threads(threads: int | None) -> None:
    """Set torch's number of CPU threads.

    Raises:
        InputError: for less than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise InputError(f"threads are at least 1, got {threads}")
    torch.set_num_threads(threads)
