"""A model into a checked file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamicvit.core.model import DynamicViT
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.errors import InputError
from dynamicvit.export.comparison import CheckResult, check
from dynamicvit.export.description import describe
from dynamicvit.export.graph import trace
from dynamicvit.export.onnx import check_opset
from dynamicvit.export.pictures import Pictures, own_pictures, sample_pictures
from dynamicvit.export.reader import load_exported
from dynamicvit.export.targets import FORMATS, format_of
from dynamicvit.utils.files import atomic_folder


def export(
    model: DynamicViT,
    path: str | Path,
    *,
    file_format: str | None = None,
    image_size: tuple[int, int] | None = None,
    batch: int | None = None,
    opset: int | None = None,
    crop_pct: float | None = None,
    check_on: str | None = None,
) -> tuple[CheckResult, Pictures]:
    """Write a model's pruned path as a file, and compare the file with the model.

    The file is there once the comparison has held; before, an old one stays as it was.

    Args:
        model: on the CPU, in float32, with the keep ratio to export.
        path: ends in ``.onnx``, ``.xml`` or ``.pt2``.
        file_format: one of ``FORMATS``, by default by the ending.
        image_size: height and width, what :func:`~dynamicvit.checkpoints.loading.set_image_size` gave; by
            default the model's own.
        batch: the one number of images that the file takes; by default it takes any.
        opset: of ONNX's operators, 18 or later.
        crop_pct: the crop's share that the file asks for, in place of the model's own.
        check_on: a source of images to compare on; by default :func:`sample_pictures`.

    Returns:
        How well they agree, and on what.

    Raises:
        InputError: for a value that can't be used, or a package that is missing.
        ExportMismatchError: if the file does not do what the model does.
    """
    path = Path(path)
    name = format_of(path, file_format)
    arguments: dict[str, Any] = {}
    if opset is not None:
        check_opset(opset)
        if name != "onnx":
            raise InputError(f"opset {opset}: only ONNX files have one, and {path} is none")
        arguments["opset"] = opset
    description = describe(model, image_size=image_size, batch=batch, crop_pct=crop_pct)
    target = FORMATS[name]
    target.ready()
    own = None if check_on is None else ImageData(check_on, labeled=False)
    program = trace(model, description)
    with atomic_folder(path.parent) as draft:
        file = draft / path.name
        target.write(program, description, file, **arguments)
        exported = load_exported(file)
        transform = eval_transform(exported)
        pictures = (
            sample_pictures(transform, model.in_chans)
            if own is None
            else own_pictures(own, transform)
        )
        result = check(model, exported, pictures.images)
        del exported  # runtimes map the file
    return result, pictures
