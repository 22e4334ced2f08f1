"""`dynamicvit visualize`: which patches of an image a model keeps, as a picture."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated

import torch
import typer
from timm.data.readers.img_extensions import get_img_extensions, is_img_extension

from dynamicvit.cli import app
from dynamicvit.cli.console import check_folder
from dynamicvit.cli.inference import load_for_inference, say_if_untrained
from dynamicvit.cli.options import (
    Checkpoint,
    CropPct,
    ImageSizeOption,
    KeepRatio,
    Model,
    NoPretrained,
    Output,
    Released,
    chosen_model,
    parse_image_size,
)
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.data import eval_transform, read_upright
from dynamicvit.errors import InputError
from dynamicvit.plots.visualization import (
    class_names,
    denormalise,
    figure,
    merges,
    save_figure,
    top_classes,
)

_OWN_PICTURE = re.compile(r"_dynamicvit(-\d+)?\.png$")


@app.command()
def visualize(
    # readable=False: this file says itself what can't be read, and goes on with the rest.
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Image files, or folders.", readable=False),
    ],
    model_name: Model = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    keep_ratio: KeepRatio = None,
    output: Output = Path("runs/visualize"),
    image_size: ImageSizeOption = None,
    crop_pct: CropPct = None,
    no_pretrained: NoPretrained = False,
) -> None:
    """Show which patches a model keeps: one picture for each image, and its classes by name."""
    size = parse_image_size(image_size)
    check_folder(output)
    sources = _find_images(images)
    model_name = chosen_model(model_name, released)
    model, size = load_for_inference(
        model_name,
        checkpoint=checkpoint,
        keep_ratio=keep_ratio,
        image_size=size,
        pretrained=not no_pretrained,
    )
    transform = eval_transform(model, size, crop_pct)
    names = class_names(model)
    failed = 0
    for source, target in zip(sources, _targets(sources, output), strict=True):
        try:
            image = read_upright(source, "L" if model.in_chans == 1 else "RGB")
        except InputError as error:
            failed += 1
            typer.echo(f"dynamicvit: {error}", err=True)
            continue
        _draw(model, transform(image)[None], names, source, target)
    if failed < len(sources):
        say_if_untrained(model_name, model)
    if failed:
        raise typer.Exit(2)


@torch.inference_mode()
def _draw(
    model: PrunedClassifier, batch: torch.Tensor, names: Sequence[str], source: Path, target: Path
) -> None:
    """Draw one image, ``(1, C, H, W)`` normalized, and print what the model says."""
    pruned = model.forward_pruned(batch)
    # An exported file has no dense network.
    dense_logits = model.forward_dense(batch).logits if isinstance(model, DynamicViT) else None
    picture = figure(
        denormalise(batch, model), pruned, names=names or None, dense_logits=dense_logits
    )
    save_figure(picture, target)
    typer.echo(f"{source} -> {target}")
    typer.echo(f"  {_kept(pruned)}")
    if not names:  # a backbone without a classifier
        return
    for guess in top_classes(pruned.logits[0], names):
        typer.echo(f"  {guess.probability:6.1%}  {guess.name}")
    if dense_logits is None:
        return
    [dense] = top_classes(dense_logits[0], names, k=1)
    typer.echo(f"  dense: {dense.name} ({dense.probability:.1%})")


def _kept(pruned: PrunedOutput) -> str:
    patches = pruned.grid[0] * pruned.grid[1]
    kept = [int(survived.sum()) for survived in pruned.kept]
    if not kept:
        return f"all {patches} patches kept: the model has no stages"
    shares = ", ".join(f"{share / patches:.0%}" for share in kept)
    said = f"kept {', '.join(map(str, kept))} of {patches} patches ({shares})"
    if not any(merges(pruned, stage) for stage in range(len(kept))):
        return said
    return f"{said}; each of the others looks like the kept one that it is part of, but paler"


# ---------------------------------------------------------------- images in, pictures out


def _find_images(given: Iterable[Path]) -> list[Path]:
    """The files given and those inside the folders given, each once.

    Raises:
        InputError: for a folder without images.
    """
    found: dict[Path, Path] = {}
    for path in given:
        inside = _images_in(path) if path.is_dir() else [path]
        if not inside:
            kinds = ", ".join(get_img_extensions())
            raise InputError(f"{path} holds no images ({kinds})")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _images_in(folder: Path) -> list[Path]:
    """The images below a folder, without this command's own pictures."""
    return sorted(
        path
        for path in folder.rglob("*")
        if is_img_extension(path.suffix.lower())
        and not path.name.startswith(".")
        and not _OWN_PICTURE.search(path.name)
        and path.is_file()
    )


def _targets(sources: Sequence[Path], folder: Path) -> list[Path]:
    """A picture's path for each image: no two the same, none of them an image that was given."""
    # Case is folded, as file systems exist where Cat.png and cat.png are one file.
    taken = {str(source.resolve()).casefold() for source in sources}
    targets = []
    for source in sources:
        for number in count(1):
            ending = f"-{number}" if number > 1 else ""
            target = folder / f"{source.stem}_dynamicvit{ending}.png"
            key = str(target.resolve()).casefold()
            if key not in taken:
                break
        taken.add(key)
        targets.append(target)
    return targets
