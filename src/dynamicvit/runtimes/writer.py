"""Writes a model as a checked file, in float32 or int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import ImageSize
from dynamicvit.data import ImageData
from dynamicvit.errors import InputError
from dynamicvit.runtimes.base import Format, without_stages
from dynamicvit.runtimes.comparison import Agreement, Check, ExportMismatchError, check
from dynamicvit.runtimes.description import Description, describe
from dynamicvit.runtimes.graph import layers_of, prediction_layers
from dynamicvit.runtimes.images import (
    Calibration,
    calibration_of,
    own_pictures,
    sample_calibration,
    sample_pictures,
    transform_for,
)
from dynamicvit.runtimes.int8 import LEAST_AGREEMENT, fewest_in_float, most_sensitive_first
from dynamicvit.runtimes.registry import FORMATS, format_of
from dynamicvit.runtimes.tasks import Classified, compared_for
from dynamicvit.utils.files import atomic_folder
from dynamicvit.utils.renamed import renamed_arguments
from dynamicvit.utils.words import percent

#: Images to order the layers by.
_ORDERED_ON = 32


@dataclass(frozen=True)
class Exported:
    """A file, and how it compares with its model.

    Attributes:
        path: of the file.
        format: key in :data:`~dynamicvit.runtimes.FORMATS`.
        description: the metadata, the precision included.
        compared_on: images, in words.
        check: of a float32 file.
        agreement: of an int8 file, on images that it was not calibrated on.
        calibrated_on: of an int8 file: images, in words.
        layers: of an int8 file: names of all layers.
        in_float: of an int8 file: names of the layers that stay in float.
    """

    path: Path
    format: str
    description: Description
    compared_on: str
    check: Check | None = None
    agreement: Agreement | None = None
    calibrated_on: str | None = None
    layers: tuple[str, ...] = ()
    in_float: frozenset[str] = frozenset()

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        """That its layers compute in."""
        return self.description.precision

    @property
    def in_words(self) -> str:
        """The layers of an int8 file that stay in float, the prediction modules as one."""
        predictors = prediction_layers(self.layers)
        rest, named = self.in_float, []
        if predictors and predictors <= rest:
            rest, named = rest - predictors, ["the prediction modules"]
        return ", ".join([*named, *(layer for layer in self.layers if layer in rest)]) or "none"


@renamed_arguments(file_format="format=", check_on="validation=")
def export(
    model: DynamicViT,
    path: str | Path,
    *,
    format: str | None = None,
    precision: str = "fp32",
    image_size: ImageSize = None,
    batch: int | None = None,
    crop_pct: float | None = None,
    dense: bool = False,
    validation: str | None = None,
    class_map: str | None = None,
    calibrate: str | None = None,
    calibration_images: int | None = None,
    max_drop: float | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    **options: Any,
) -> Exported:
    """Write a model's pruned path as a file, and compare the file with the model.

    A file that does not agree is not written, and an older one of that name is kept.

    Args:
        model: on the CPU, in float32, with the keep ratio to export.
        path: ends in ``.onnx``, ``.xml`` or ``.pt2``.
        format: a key of :data:`~dynamicvit.runtimes.FORMATS`; by default that of the suffix.
        precision: "fp32", or "int8" for all layers but the prediction modules, if the format has
            it.
        image_size: side of a square image, or height and width, in pixels; the model must take it
            already (:func:`~dynamicvit.checkpoints.loading.set_image_size`). By default its own.
        batch: number of images in a batch, fixed; by default any.
        crop_pct: in place of the model's own in the description.
        dense: write the backbone alone, which drops nothing.
        validation: a source of images to compare on. In float32 up to 32 of them; by default two
            photographs. In int8 all of them, labeled or with masks; by default the images of
            ``calibrate`` that were not calibrated on.
        class_map: for the labels, as for :func:`~dynamicvit.data.class_map_for`.
        calibrate: for int8, a source of images to calibrate on, labeled or not. Only a file that
            is timed and not used (``least_agreement=0``) can do without: two photographs.
        calibration_images: number of images to calibrate on, by default 300.
        max_drop: for int8, points of top-1 or mIoU that it may cost; as many layers as needed stay
            in float. Without ``validation`` changed answers count as lost.
        least_agreement: for int8, share of the answers, and of the kept patches of each stage, that
            must be the model's; of a map the share of its pixels.
        **options: of the format: ``opset`` for ONNX, 18 or later.

    Raises:
        InputError: for a value that can't be used, or a missing package.
        ExportMismatchError: if a float32 file differs from the model; if an int8 file agrees too
            little, or costs more than ``max_drop`` even in float.
    """
    path = Path(path)
    kind = format_of(path, format)
    kind.check_output(path)
    of_int8 = {
        "calibrate": calibrate,
        "calibration_images": calibration_images,
        "max_drop": max_drop,
    }
    _check_precision(path, kind, precision, of_int8)
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise InputError(f"max_drop {max_drop}: give points, 0 to 100")
    if precision == "int8" and calibrate is None and least_agreement > 0:
        raise InputError("int8 needs calibrate, images of the kind that the file will see")
    kind.check_options(options)
    if dense:
        model = without_stages(model)
    if model.per_image is not None:
        raise InputError(
            "an exported graph keeps the same number of tokens of every image, and this model has "
            "a budget per image: export the mean counts (model.per_image = None)"
        )
    about = describe(model, image_size=image_size, batch=batch, crop_pct=crop_pct)
    transform = transform_for(model, about.input_size[1:], about.crop_pct)
    task = compared_for(model, transform)
    kind.ready(precision)
    if precision == "fp32":
        own = None if validation is None else task.images(validation)
        return _export_float(model, path, kind, about, own, options)
    images = (
        sample_calibration(transform)
        if calibrate is None
        else calibration_of(task.images(calibrate), transform, calibration_images)
    )
    if batch is not None and batch > len(images.images):
        raise InputError(
            f"batch {batch}: {len(images.images)} images to calibrate on; give {batch} or more, or "
            f"no fixed batch"
        )
    if validation is not None:
        images = images._replace(held_out=task.labeled(validation, class_map), others=validation)
    about = replace(about, precision="int8")
    return _export_int8(task, path, kind, about, images, max_drop, least_agreement, options)


def _export_float(
    model: DynamicViT,
    path: Path,
    kind: Format,
    about: Description,
    own: ImageData | None,
    options: Mapping[str, Any],
) -> Exported:
    program = kind.trace(model, about)
    with atomic_folder(path.parent, path.name) as draft:
        with _named(path):
            kind.write(program, about, draft / path.name, **options)
        exported = kind.load(draft / path.name)
        transform = transform_for(exported)
        images, origin = sample_pictures(transform) if own is None else own_pictures(own, transform)
        result = check(model, exported, images)
        del exported  # runtimes map the file
    return Exported(path, kind.name, about, origin, check=result)


def _export_int8(
    task: Classified,
    path: Path,
    kind: Format,
    about: Description,
    images: Calibration,
    max_drop: float | None,
    least_agreement: float,
    options: Mapping[str, Any],
) -> Exported:
    model: DynamicViT = task.model
    program = kind.trace(model, about)
    layers = layers_of(program)
    names = tuple(dict.fromkeys(layers.values()))
    always = prediction_layers(names)
    reference = task.reference(images.held_out)
    with atomic_folder(path.parent, path.name) as draft, TemporaryDirectory(dir=draft) as trials:
        source = Path(trials, "float", path.name)
        source.parent.mkdir()
        with _named(path):
            kind.write(program, replace(about, precision="fp32"), source, **options)

        def write(in_float: frozenset[str]) -> tuple[Path, frozenset[str], Agreement]:
            file = Path(trials, f"int8-{len(in_float)}", path.name)
            file.parent.mkdir(exist_ok=True)
            with _named(path):
                kind.quantize(source, file, about, images.images, layers, in_float)
            return file, in_float, reference.agreement(kind.load(file))

        if max_drop is None:
            found = write(always)
        else:
            others = [layer for layer in names if layer not in always]
            order = most_sensitive_first(model, images.images[:_ORDERED_ON], others)
            found = fewest_in_float(write, lambda trial: trial[2].drop, always, order, max_drop)
        if found is None:
            raise ExportMismatchError(
                f"costs more than {max_drop:g} points even with every layer in float"
            )
        file, in_float, agreement = found
        # Each patch of a map has its answer, kept or not.
        least = agreement.answers if about.map_size else agreement.least
        if least < least_agreement:
            shares = ", ".join(percent(share) for share in agreement.kept)
            kept = shares and f", and of the patches kept at each stage {shares}"
            answers = "pixels' classes" if about.map_size else "answers"
            raise ExportMismatchError(
                f"{percent(agreement.answers)} of the {answers}{kept} are the model's, less than "
                f"{percent(least_agreement, 0)}: calibrate on images of the kind that the file "
                "will see"
            )
        for part in file.parent.iterdir():
            part.replace(draft / part.name)
    return Exported(
        path,
        kind.name,
        about,
        images.others,
        agreement=agreement,
        calibrated_on=images.origin,
        layers=names,
        in_float=in_float,
    )


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file it is that the disk is full."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror or error})") from error


def _check_precision(
    path: Path, kind: Format, precision: str, of_int8: dict[str, str | float | None]
) -> None:
    """Check the precision, and the arguments that belong to int8."""
    if precision not in ("fp32", "int8"):
        raise InputError(f"precision {precision!r}: files are written in fp32 or int8")
    if precision not in kind.precisions:
        suffixes = [each.suffix for each in FORMATS.values() if precision in each.precisions]
        raise InputError(f"{path}: {precision} is for {' or '.join(suffixes)} files")
    if precision == "fp32":
        for name, value in of_int8.items():
            if value is not None:
                raise InputError(f"{name} {value} goes with precision int8, got {precision}")
