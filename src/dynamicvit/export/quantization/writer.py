"""A model into an int8 file that answers and chooses nearly as it does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dynamicvit.core.model import DynamicViT
from dynamicvit.data import ImageData, Loader, class_map_for, eval_transform
from dynamicvit.errors import InputError
from dynamicvit.export.comparison import ExportMismatchError
from dynamicvit.export.description import describe
from dynamicvit.export.graph import trace
from dynamicvit.export.quantization import onnx, openvino
from dynamicvit.export.quantization.agreement import Agreement, Reference
from dynamicvit.export.quantization.images import (
    CALIBRATION_IMAGES,
    calibration_images,
    sample_calibration,
)
from dynamicvit.export.quantization.layers import in_words, layers_of, ranking_layers
from dynamicvit.export.quantization.quantizer import Quantizer
from dynamicvit.export.quantization.search import fewest_in_float
from dynamicvit.export.quantization.sensitivity import most_sensitive_first
from dynamicvit.export.reader import load_exported
from dynamicvit.export.targets import FORMATS, format_of
from dynamicvit.utils.files import atomic_folder

#: The formats that have int8, and who quantizes them.
INT8: dict[str, Quantizer] = {"onnx": onnx, "openvino": openvino}

#: Share of answers, and of the patches kept at each stage, that must be the model's own. DeiT-Tiny
#: with ρ = 0.5 and gone tokens answers 83 % as it does dense: an int8 file that agrees less with
#: its model has lost more than half of the tokens are worth.
LEAST_AGREEMENT = 0.85

#: Images to rank the layers by.
_RANKED_ON = 32
_BATCH = 32


@dataclass(frozen=True)
class Int8Result:
    """What an int8 file is like.

    Attributes:
        agreement: with the model, on images that it was not calibrated on.
        layers: names of all layers.
        in_float: names of those that stayed in float.
        calibrated_on: in words.
        compared_on: in words.
    """

    agreement: Agreement
    layers: tuple[str, ...]
    in_float: frozenset[str]
    calibrated_on: str
    compared_on: str

    @property
    def in_words(self) -> str:
        """Which layers stayed in float."""
        return in_words(self.in_float, self.layers)


def export_int8(
    model: DynamicViT,
    path: str | Path,
    *,
    calibrate: str | None = None,
    images: int = CALIBRATION_IMAGES,
    max_drop: float | None = None,
    validation: str | None = None,
    class_map: str | None = None,
    file_format: str | None = None,
    image_size: tuple[int, int] | None = None,
    batch: int | None = None,
    crop_pct: float | None = None,
    least_agreement: float = LEAST_AGREEMENT,
) -> Int8Result:
    """Write a model's pruned path as a file that computes in int8, and compare it with the model.

    Layers compute in int8, but for the prediction modules'. The file is there once the comparison
    has held; before, an old one stays as it was.

    Args:
        model: on the CPU, in float32, with the keep ratio to export.
        path: ends in ``.onnx`` or ``.xml``.
        calibrate: a source of images to find the layers' ranges with, labeled or not; by default
            two photographs' crops, which is enough to time the file only.
        images: how many of them; others of the source are compared on.
        max_drop: points of top-1 that int8 may cost; layers stay in float until it does not cost
            more. Without ``validation`` answers that changed count as lost.
        validation: a labeled source to compare on instead.
        class_map: of that source, as for :func:`~dynamicvit.data.class_map_for`.
        file_format: as of :func:`~dynamicvit.export.export`.
        image_size: likewise.
        batch: likewise.
        crop_pct: likewise.
        least_agreement: share of answers, and of kept patches at each stage, that must be the
            model's.

    Raises:
        InputError: for a value that can't be used, or a package that is missing.
        ExportMismatchError: if the file agrees too little, or costs too much even in float.
    """
    path = Path(path)
    name = format_of(path, file_format)
    if name not in INT8:
        kinds = " or ".join(FORMATS[known].suffix for known in INT8)
        raise InputError(f"{path}: int8 is for {kinds} files")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise InputError(f"max_drop is in points of top-1, 0 to 100, got {max_drop}")
    about = describe(model, image_size=image_size, batch=batch, crop_pct=crop_pct)
    target, quantizer = FORMATS[name], INT8[name]
    quantizer.ready()
    target.ready()
    transform = eval_transform(model, about.input_size[1:], about.crop_pct)
    calibration = (
        sample_calibration(transform, model.in_chans)
        if calibrate is None
        else calibration_images(ImageData(calibrate, labeled=False), transform, images)
    )
    if batch is not None and batch > len(calibration.images):
        raise InputError(
            f"calibration in batches of {batch} needs as many images, got "
            f"{len(calibration.images)}: give more, or no fixed batch"
        )
    held_out, compared_on = calibration.held_out, calibration.others
    if validation is not None:
        labeled = _labeled(validation, model, class_map).with_transform(transform)
        held_out, compared_on = Loader(labeled, batch_size=_BATCH), validation
    program = trace(model, about)
    layers = layers_of(program)
    always = ranking_layers(layers)
    reference = Reference(model, held_out)
    with (
        atomic_folder(path.parent) as finished,
        TemporaryDirectory(prefix=".unfinished-", dir=finished.parent) as folder,
    ):
        draft = Path(folder)
        source = draft / "float" / path.name
        source.parent.mkdir()
        target.write(program, about, source)

        def write(in_float: frozenset[str]) -> tuple[Path, frozenset[str], Agreement]:
            place = draft / f"int8-{len(in_float)}" / path.name
            place.parent.mkdir(exist_ok=True)
            described = replace(about, precision="int8")
            quantizer.quantize(source, place, described, calibration.images, layers, in_float)
            return place, in_float, reference.agreement(load_exported(place))

        if max_drop is None:
            found = write(always)
        else:
            others = [layer for layer in layers.values() if layer not in always]
            order = most_sensitive_first(model, calibration.images[:_RANKED_ON], others)
            found = fewest_in_float(write, lambda file: file[2].drop, always, order, max_drop)
        if found is None:
            raise ExportMismatchError(
                f"it loses more than {max_drop:g} points even with every layer in float"
            )
        place, in_float, agreement = found
        _check(agreement, least_agreement)
        for part in place.parent.iterdir():
            part.replace(finished / part.name)
    return Int8Result(agreement, tuple(layers.values()), in_float, calibration.origin, compared_on)


def _labeled(source: str, model: DynamicViT, class_map: str | None) -> ImageData:
    """A source of images with the model's classes."""
    data = ImageData(source)
    if not data.labeled:
        raise InputError(f"{source} has no labels to count right answers by")
    return data.with_class_map(class_map_for(data, model.num_classes, class_map).index)


def _check(agreement: Agreement, least: float) -> None:
    if agreement.least < least:
        kept = ", ".join(f"{share:.1%}" for share in agreement.kept)
        patches = f" and {kept} of the patches kept" if kept else ""
        raise ExportMismatchError(
            f"in int8 {agreement.answers:.1%} of the answers{patches} are the model's, and "
            f"{least:.0%} must be: calibrate on images of the kind that it will see"
        )
