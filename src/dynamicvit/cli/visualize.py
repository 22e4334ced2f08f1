"""`dynamicvit visualize`: pictures of the patches that a model keeps of images or clips."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from dynamicvit.cli.console import check_folder, print_error, say_left_out
from dynamicvit.cli.inference import load_for_inference, say_if_untrained
from dynamicvit.cli.options import (
    AddOn,
    Checkpoint,
    ClassNames,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Method,
    ModelOrFile,
    NoPretrained,
    Output,
    Policy,
    Released,
    ScheduleOption,
    chosen_model,
    parse_image_size,
)
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of, segments
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.segmenter import Labels
from dynamicvit.data import (
    frames_of,
    has_clips,
    read_class_names,
    read_image,
    top_classes,
)
from dynamicvit.data.class_names import check_class_names
from dynamicvit.data.folders import image_files, is_image, other_files
from dynamicvit.data.joint import centered_mask
from dynamicvit.data.masks import class_indices
from dynamicvit.data.sources.pairs import mask_beside
from dynamicvit.data.video.clip_sources import is_clip, open_clips
from dynamicvit.errors import InputError
from dynamicvit.plots.page import merges
from dynamicvit.plots.visualization import visualize as draw
from dynamicvit.plots.visualized import Visualization
from dynamicvit.runtimes import ExportedModel
from dynamicvit.utils.words import percent

_OWN_PICTURE = re.compile(r"_dynamicvit(-\d+)?\.(png|gif)$")


def visualize(
    # readable=False: unreadable images are named below, and the others drawn.
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, or folders; of clips videos.",
            readable=False,
        ),
    ],
    model_name: ModelOrFile = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    keep_ratio: KeepRatio = None,
    schedule: ScheduleOption = None,
    policy: Policy = None,
    method: Method = None,
    output: Output = Path("runs/visualize"),
    show_merged: Annotated[
        bool,
        typer.Option(
            "--show-merged",
            help="Draw merged patches as copies of the kept patch they are part of.",
        ),
    ] = False,
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    class_names: ClassNames = None,
    no_pretrained: NoPretrained = False,
) -> None:
    """Draw the patches that a model keeps, a picture for each image, and name its classes.

    Of a clip the picture has a row for each frame, and a GIF beside it moves.

    Example: dynamicvit visualize photo.jpg --model runs/mine -o pictures
    """
    size = parse_image_size(image_size)
    names = None if class_names is None else read_class_names(class_names)
    sources = _find_images(images)
    targets = _targets(sources, output)
    names_of = [target.with_suffix(end).name for target in targets for end in (".png", ".gif")]
    check_folder(output, names=names_of)
    model_name = chosen_model(model_name, released)
    model, size = load_for_inference(
        model_name,
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
    failed, clips = 0, frames_of(model) is not None
    for source, target in zip(sources, targets, strict=True):
        try:
            if not clips and is_clip(source.name) and not is_image(source.name):
                raise InputError(f"the model takes images; {source} is a video")
            if clips:
                how = {"names": names, "image_size": size, "crop_pct": crop_pct}
                seen = draw(model, source, target, **how)
                typer.echo(f"{source} -> {target}, {target.with_suffix('.gif').name}")
                _print(seen)
                continue
            image = read_image(source, None)
            mask = _truth(model, source, size, crop_pct)
        except InputError as error:
            failed += 1
            print_error(error)
            continue
        found = draw(
            model,
            image,
            target,
            names=names,
            image_size=size,
            crop_pct=crop_pct,
            show_merged=show_merged,
            masks=mask,
        )
        typer.echo(f"{source} -> {target}")
        _print(found)
        if mask is not None and found.output.kept:
            typer.echo(f"  {_lies(found.output, mask)}")
    say_left_out(
        Console(),
        [name for path in images if path.is_dir() and not clips for name in other_files(path)],
    )
    if failed < len(sources):
        say_if_untrained(model_name, model)
    if failed:
        raise typer.Exit(2)


def _print(found: Visualization) -> None:
    """Print how much is kept of an image, and its classes by name."""
    typer.echo(f"  {_kept(found.output)}")
    if not found.names:  # a backbone without a classifier
        return
    for guess in top_classes(found.output.logits[0], found.names):
        typer.echo(f"  {100 * guess.probability:5.1f} %  {guess.name}")
    if found.dense_logits is not None:
        [dense] = top_classes(found.dense_logits[0], found.names, k=1)
        typer.echo(f"  dense: {dense.name} ({percent(dense.probability)})")


def _kept(pruned: PrunedOutput) -> str:
    patches = math.prod(pruned.grid)
    kept = [int(each.sum()) for each in pruned.kept]
    if not kept:
        return f"all {patches} patches kept: the model has no stages"
    shares = ", ".join(f"{100 * share / patches:.0f}" for share in kept)
    line = f"kept {', '.join(map(str, kept))} of {patches} patches ({shares} %)"
    merged = any(merges(pruned, stage) for stage in range(len(kept)))
    return f"{line}, the rest merged" if merged else line


def _truth(
    model: DynamicViT | ExportedModel, source: Path, size: tuple[int, int], crop_pct: float | None
) -> Tensor | None:
    """``(1, H, W)``: what a mask beside the image says of the pixels that the model sees.

    Raises:
        InputError: for a file that is no mask of the model's classes.
    """
    beside = mask_beside(source) if segments(model) else None
    if beside is None:
        return None
    labels: Any = getattr(core_of(model), "labels", None) or Labels()
    try:
        with Image.open(beside) as picture:
            found = class_indices(
                picture, labels.ignore_index, labels.reduce_labels, model.num_classes
            )
    except (OSError, InputError) as error:
        raise InputError(f"{beside} {error}") from error
    return centered_mask(model, found, size, crop_pct)[None]


def _lies(pruned: PrunedOutput, mask: Tensor) -> str:
    """How much of what is kept to the end lies on another class than the first."""
    share = adaptive_avg_pool2d((mask > 0).float()[None], pruned.grid).flatten()
    kept = pruned.kept[-1][0].float().cpu()
    on = float((share * kept).sum() / kept.sum().clamp(min=1))
    everywhere = percent(float(share.mean()))
    return f"other classes than the first: {percent(on)} of the last kept, {everywhere} of all"


def _find_images(given: Iterable[Path]) -> list[Path]:
    """The given files and those in given folders, each once, without this command's pictures.

    Raises:
        InputError: for a folder without images.
    """
    found: dict[str, Path] = {}
    for path in given:
        inside = [path]
        if path.is_dir():
            if has_clips(path):
                clips = open_clips(path)
                inside = [Path(clips.path(row)) for row in range(len(clips))]
            else:
                inside = image_files(path)
            inside = [file for file in inside if not _OWN_PICTURE.search(file.name)]
            if not inside:
                raise InputError(f"{path} holds only this command's own pictures")
        for file in inside:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _targets(sources: Sequence[Path], folder: Path) -> list[Path]:
    """A picture's path for each image, different from each other and from the images."""
    # On some file systems Cat.png and cat.png are one file.
    taken = {os.path.realpath(source).casefold() for source in sources}
    targets = []
    for source in sources:
        for number in count(1):
            ending = f"-{number}" if number > 1 else ""
            target = folder / f"{source.stem}_dynamicvit{ending}.png"
            key = os.path.realpath(target).casefold()
            if key not in taken:
                break
        taken.add(key)
        targets.append(target)
    return targets
