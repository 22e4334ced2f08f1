"""What a model says of images, in order, into a file: classes, or a mask for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from dynamicvit.checkpoints.loading import load
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.networks import check_classifies, eval_mode, segments
from dynamicvit.data import (
    Batch,
    ImageData,
    Loader,
    MaskData,
    NoReadableImageError,
    Views,
    has_masks,
    open_data,
    taken_by,
)
from dynamicvit.errors import InputError
from dynamicvit.evaluation.answers import Classes, Masks, Row, table_of
from dynamicvit.evaluation.draft import Draft
from dynamicvit.evaluation.tables import check_suffix
from dynamicvit.runtimes.registry import is_exported, load_exported
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.precision import autocast
from dynamicvit.utils.tensors import fingerprint

Images = str | os.PathLike[str] | ImageData


@dataclass(frozen=True)
class PredictResult:
    """What :func:`predict` found.

    Attributes:
        rows: one for each image, in order, by column: ``image``, ``class_1``, ``index_1``,
            ``probability_1``, ``class_2``, ..., ``kept_1`` for each stage (the share of the patches
            kept there), ``error`` (why an image can't be read, else None). Empty if they were
            written into a file. Of a segmentation model ``image``, ``mask`` (its file), ``error``.
        images: number of images, unreadable ones counted.
        unreadable: paths of the unreadable images.
        resumed: number of images that an earlier run had done.
    """

    rows: tuple[Row, ...]
    images: int
    unreadable: tuple[str, ...]
    resumed: int


def predict(
    model: PrunedClassifier | str | os.PathLike[str],
    images: Images | Sequence[Images],
    output: str | os.PathLike[str] | None = None,
    *,
    top: int = 5,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    batch_size: int | None = None,
    stride: int | None = None,
    views: Views | None = None,
    workers: int = 1,
    strict: bool = False,
    device: torch.device | str | None = None,
    amp_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> PredictResult:
    """Classify images, in order; an unreadable one gets a row that says why.

    A segmentation model writes a mask for each image instead: a PNG of class indices with a
    palette, of the image's size, by sliding windows.

    With an output, rows gather in ``OUTPUT.part`` until all are there. If the run is stopped, the
    same call resumes from that file.

    Args:
        model: run in ``eval()``; or what :func:`~dynamicvit.load` takes, or an exported file.
        images: one or more sources, as for :class:`~dynamicvit.data.ImageData`, or of clips for a
            model of clips; labels are ignored.
        output: a ``.csv``, ``.jsonl`` or ``.parquet``, replaced when all rows are there; of a
            segmentation model a folder, with masks named like their images and
            ``predictions.csv``.
        top: classes of each image; fewer if the model has fewer.
        image_size: side, or height and width, in pixels; the model's own by default.
        crop_pct: share of the short side that the center crop takes; the model's own by default.
        batch_size: images in a batch, by default 32; of clips 8.
        stride: of a segmentation model, from window to window in pixels, by default its side; of
            clips, from frame to frame, by default over the whole video.
        views: of each video, whose answers are averaged; by default one.
        workers: processes that read images; 0 reads in this one.
        strict: an unreadable image is an error.
        device: to which the model is moved; by default the model's.
        amp_dtype: dtype of autocast; by default the model's own dtype.
        progress: called first with the number of images that an earlier run had done, then after
            each batch with the number of its images.
        processes: that share the images of each batch; the main one writes.

    Raises:
        InputError: without a readable image; for a model without classes, or an option that is not
            for its task; for logits that are not finite; for an output that can't be written, or
            was begun with another model, other images or options.
    """
    if top < 1:
        raise InputError(f"top is at least 1 class, got {top}")
    if isinstance(model, str | os.PathLike):
        model = load_exported(model) if is_exported(model) else load(model)
    assert isinstance(model, nn.Module)
    gives_maps = segments(model)
    _check_options(gives_maps, crop_pct=crop_pct, batch_size=batch_size, views=views)
    if not gives_maps:
        check_classifies(model, "predict")
    table = table_of(output, gives_maps)
    if table is not None:
        check_suffix(table)
    if device is None:
        own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        device = own if processes is None else processes.device
    processes = Processes(device) if processes is None else processes
    model.to(device)
    data = open_images(images, strict, views)
    if gives_maps:
        assert table is not None
        answers: Classes | Masks = Masks(model, table.parent, image_size, stride)
    else:
        data = [taken_by(model, part, stride) for part in data]
        answers = Classes(model, top, image_size, crop_pct)
    parts = answers.prepared(data)
    # An image of its own size is alone in a batch.
    own = data[0].usual_batch if batch_size is None else batch_size
    together = processes.count if gives_maps else own
    loader = Loader(parts, together, num_workers=workers)
    loader.set_share(processes.rank, processes.count)
    columns = {"image": "string", **answers.columns, "error": "string"}
    amp = autocast(torch.device(device).type, amp_dtype)
    with eval_mode(model), torch.inference_mode(), amp:
        draft = None
        if table is not None:
            settings = {
                "sources": [str(part.root) for part in data],
                "images": len(parts),
                "model": weights_of(model, device),
                "stages": model.schedule.stages,
                "keep_ratios": model.schedule.keep_ratios,
                "policy": model.schedule.policy,
                "image_size": image_size,
                "crop_pct": crop_pct,
                "stride": stride,
                "precision": str(amp_dtype),
                **({} if views is None else {"views": str(views)}),
                "columns": list(columns),
            }
            draft = Draft(table, settings)
        resumed = 0 if draft is None else _resume(draft, data, loader, processes)
        if progress is not None:
            progress(resumed)
        rows: list[Row] = []
        # All of one process's images may be unreadable; those of all are counted below.
        with suppress(NoReadableImageError):
            for batch in loader:
                own_rows = _rows(answers, batch.to(device), list(columns))
                found = [row for part in processes.gather(own_rows) for row in part]
                if draft is None:
                    rows += found
                elif processes.is_main:
                    draft.add(found)
                if progress is not None:
                    progress(len(found))
    if draft is None:
        unreadable = _unreadable(rows)
    else:
        unreadable = processes.gather(_unreadable(draft.rows()) if processes.is_main else ())[0]
    if len(unreadable) == len(parts):
        if draft is not None and processes.is_main:
            draft.remove()
        raise InputError(
            f"none of the {len(parts)} images can be read; the first is {unreadable[0]}"
        )
    if draft is not None and processes.is_main:
        draft.finish(columns)
    return PredictResult(tuple(rows), len(parts), unreadable, resumed)


def open_images(
    images: Images | Sequence[Images], strict: bool = False, views: Views | None = None
) -> list[ImageData]:
    """The images, or clips, of each source, unlabeled.

    Raises:
        InputError: for a source that is missing, unreadable or empty, or none at all.
    """
    single = isinstance(images, str | os.PathLike | ImageData)
    several: Sequence[Images] = [images] if single else images
    if not several:
        raise InputError("no images: give a file, a folder or another source of images")
    return [
        each if isinstance(each, ImageData) else unlabeled_images(each, strict, views)
        for each in several
    ]


def unlabeled_images(
    root: str | os.PathLike[str], strict: bool = False, views: Views | None = None
) -> ImageData:
    """The images or clips of a source, classes and masks left aside."""
    if has_masks(root):
        return MaskData(root, labeled=False, strict=strict)
    return open_data(root, views=views or Views(), labeled=False, strict=strict)


def _check_options(gives_maps: bool, **options: object) -> None:
    """Refuse options of the other task."""
    for name, value in options.items():
        if gives_maps and value is not None:
            raise InputError(f"{name} {value} is not for segmentation models")


def _rows(answers: Classes | Masks, batch: Batch, columns: Sequence[str]) -> list[Row]:
    """A row for each image of a batch, in order."""
    rows: list[Row] = [dict.fromkeys(columns) for _ in range(len(batch) + len(batch.skipped))]
    if len(batch):
        found = answers.of(batch)
        for place, path, answer in zip(batch.places, batch.paths, found, strict=True):
            rows[place] |= {"image": path, **answer}
    unreadable = (row for row in rows if row["image"] is None)
    for row, path, reason in zip(unreadable, batch.skipped, batch.reasons, strict=True):
        row |= {"image": path, "error": reason}
    return rows


def _unreadable(rows: Sequence[Row] | Iterator[Row]) -> tuple[str, ...]:
    return tuple(row["image"] for row in rows if row["error"] is not None)


def _resume(draft: Draft, data: Sequence[ImageData], loader: Loader, processes: Processes) -> int:
    """Start where a draft ends, at a whole batch; returns the number of images already done.

    Raises:
        InputError: if the images have changed.
    """
    if draft.last is not None:
        place, part = draft.done - 1, 0
        while place >= len(data[part]):
            place, part = place - len(data[part]), part + 1
        path = data[part].path(place)
        if path != draft.last["image"]:
            raise InputError(
                f"{draft.path} ends with {draft.last['image']}, and {data[part].root} has {path} "
                "there now; delete it to begin again"
            )
    # Read by all before the main process changes it.
    batches = min(processes.gather(draft.done)) // loader.batch_size
    if draft.done == len(loader.data):
        batches = len(loader)
    done = min(batches * loader.batch_size, len(loader.data))
    if batches:
        loader.set_epoch(0, batches)
    if processes.is_main:
        draft.begin(done)
    return done


def weights_of(model: nn.Module, device: torch.device | str) -> str:
    """Tells weights apart: their fingerprint; of an exported file, that of an answer."""
    values = {name: value for name, value in model.state_dict().items() if value is not None}
    if not values:
        random = torch.Generator().manual_seed(0)
        shape: tuple[int, ...] = model.input_shape  # type: ignore[assignment]
        answer = model(torch.randn(1, *shape, generator=random).to(device))
        values = {"answer": (answer.float() * 1000).round()}
    return f"weights {fingerprint(values)[:8]}"
