"""The metadata of an exported file: enough to prepare an image and to read the outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import torch

from dynamicvit._version import __version__
from dynamicvit.core.hub import policy_in
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode, untrained_on_purpose
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.core.segmenter import Labels, Segmenter
from dynamicvit.costs import ImageSize, resolve_image_size
from dynamicvit.data.class_names import known_class_names
from dynamicvit.data.transforms import image_config
from dynamicvit.errors import InputError
from dynamicvit.utils.fields import CROP, check_fields, parse_json
from dynamicvit.utils.words import shortened

#: What may be unknown.
_OPTIONAL = {"model", "labels", "batch", "map_size"}
#: Each format stores the description under this name, as JSON.
KEY = "dynamicvit"


@dataclass(frozen=True)
class Description:
    """The metadata of an exported file, the same in every format.

    Attributes:
        model: timm's name of the backbone, if it has one.
        version: of dynamicvit that wrote the file.
        labels: name of each class; ``None`` if unknown.
        num_classes: number of logits.
        input_size: channels, height and width in pixels.
        batch: images or clips in a batch; ``None`` for any number.
        mean: of each channel, of pixels in [0, 1].
        std: standard deviation, likewise.
        interpolation: how the short side is resized.
        crop_pct: the center crop's share of the resized short side.
        crop_mode: of timm's transforms.
        grid: rows and columns of patches, of clips times in front; N is their product.
        stages: blocks before which patch tokens are dropped.
        keep_ratios: ρ of each stage, shares of the N patches.
        kept: patches kept from each stage on; output ``kept_s`` is ``(B, kept[s - 1])``.
        policy: for dropped tokens.
        precision: "int8" if layers compute in it, else "fp32".
        method: by which tokens are chosen or combined; ``None`` in files of 0.1.0.
        restore_before: index of the first block that runs on every patch again, or ``None``.
        task: "segmentation" where the logits are a map, else "classification".
        map_size: rows and columns of the map; ``None`` for a classifier.
        ignore_index: of pixels without a class in the masks of a segmentation model.
        reduce_labels: its masks count classes from 1.
        frames: of a clip; ``None`` for images.
    """

    model: str | None
    version: str
    labels: tuple[str, ...] | None
    num_classes: int
    input_size: tuple[int, int, int]
    batch: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    grid: tuple[int, ...]
    stages: tuple[int, ...]
    keep_ratios: tuple[float, ...]
    kept: tuple[int, ...]
    policy: Policy = "removed"
    precision: Literal["fp32", "int8"] = "fp32"
    method: str | None = None
    restore_before: int | None = None
    task: Literal["classification", "segmentation"] = "classification"
    map_size: tuple[int, int] | None = None
    ignore_index: int = 255
    reduce_labels: bool = False
    frames: int | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input: channels, height and width, of a clip frames in front."""
        return self.input_size if self.frames is None else (self.frames, *self.input_size)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return ["logits", *(f"kept_{stage + 1}" for stage in range(len(self.stages)))]

    def shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of the outputs."""
        logits = (batch, self.num_classes, *(self.map_size or ()))
        return [logits, *((batch, kept) for kept in self.kept)]

    @property
    def mask_labels(self) -> Labels:
        """How masks name the classes of a segmentation model."""
        return Labels(self.labels, self.ignore_index, self.reduce_labels)

    @property
    def schedule(self) -> Schedule:
        """Where and how much is dropped."""
        return Schedule(self.stages, self.keep_ratios, self.policy, self.restore_before)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"written_by": f"dynamicvit {self.version}", **asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, source: object) -> Description:
        """Read what :meth:`to_json` wrote.

        Args:
            text: the JSON; ``None`` if the file has none.
            source: the file, for the error.

        Raises:
            InputError: if it is not a description.
        """
        none = f"{source} has no description: give a file that dynamicvit export wrote"
        if not text:
            raise InputError(none)
        said = parse_json(text, f"{source}: its description")
        if not isinstance(said, dict):
            raise InputError(none)
        values = {name: _tupled(value) for name, value in said.items()}
        values.pop("written_by", None)
        if "dropped" in values:  # written by 0.1.0
            values["policy"] = policy_in({"dropped": values.pop("dropped")})
        for field in fields(cls):
            optional = field.default is not MISSING or field.name in _OPTIONAL
            if values.get(field.name) is None and not optional:
                raise InputError(f"{none}: {field.name} is missing")
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise InputError(f"{none}: {shortened(min(unknown))} is unknown")
        check_fields(values, f"{source}: its description")
        given = {name: value for name, value in values.items() if value is not None}
        about = cls(**{**dict.fromkeys(_OPTIONAL), **given})
        about._check(source)
        return about

    def _check(self, source: object) -> None:
        """Check what belongs together.

        Raises:
            InputError: naming what does not.
        """
        channels, patches = self.input_size[0], math.prod(self.grid)
        axes = 2 if self.frames is None else 3
        if len(self.grid) != axes:
            raise InputError(f"{source}: its description has a grid of {len(self.grid)} axes")
        for name, given, expected in (
            ("labels", self.labels, self.num_classes),
            ("mean", self.mean, channels),
            ("std", self.std, channels),
            ("kept", self.kept, len(self.stages)),
        ):
            if given is not None and len(given) != expected:
                raise InputError(
                    f"{source}: its description has {len(given)} values of {name}, not {expected}"
                )
        if (self.task == "segmentation") != (self.map_size is not None):
            raise InputError(f"{source}: its description has map_size for segmentation alone")
        if any(kept > patches for kept in self.kept):
            raise InputError(f"{source}: its description keeps {self.kept} of {patches} patches")
        try:
            _ = self.schedule
        except InputError as error:
            raise InputError(f"{source}: its description: {error}") from None


def describe(
    model: DynamicViT,
    *,
    image_size: ImageSize = None,
    batch: int | None = None,
    crop_pct: float | None = None,
) -> Description:
    """The description of a model's file.

    Args:
        model: the model.
        image_size: side of a square, or height and width, in pixels; the model must take it
            already. By default the model's own.
        batch: images in a batch; ``None`` for any number.
        crop_pct: in place of the model's own.

    Raises:
        InputError: for a batch of less than one, a share outside (0, 1], an image size that the
            model does not take, or a model without classes.
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}: give at least 1 image")
    if crop_pct is not None and not CROP.holds(crop_pct):
        raise InputError(f"crop_pct {crop_pct}: give {CROP.words}")
    if crop_pct is not None and isinstance(model, Segmenter):
        raise InputError(f"crop_pct {crop_pct}: a segmentation model sees whole images, without it")
    if model.num_classes < 1:
        raise InputError("the model has no classifier: export takes classifiers and segmenters")
    config = image_config(model, image_size)
    height, width = resolve_image_size(model, image_size)
    grid = model.bound.grid(height, width)
    names = known_class_names(model)
    segments = _segmentation(model, (height, width)) if isinstance(model, Segmenter) else {}
    return Description(
        model=model.pretrained_cfg.get("architecture"),
        version=__version__,
        labels=None if names is None else tuple(names),
        num_classes=model.num_classes,
        input_size=(model.in_chans, height, width),
        batch=batch,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"] if crop_pct is None else crop_pct,
        crop_mode=config["crop_mode"],
        grid=grid,
        stages=model.schedule.stages,
        keep_ratios=model.schedule.keep_ratios,
        kept=tuple(model.schedule.kept(math.prod(grid))),
        policy=model.schedule.policy,
        method=model.method.name or None,
        restore_before=model.schedule.restore_before,
        frames=model.bound.frames,
        **segments,
    )


def _segmentation(model: Segmenter, size: tuple[int, int]) -> dict[str, Any]:
    """What is said of a segmentation model alone."""
    like = next(model.parameters())
    blank = torch.zeros(1, *model.bound.input_shape(size), dtype=like.dtype, device=like.device)
    with eval_mode(model), untrained_on_purpose(model), torch.no_grad():
        logits = model.forward_dense(blank).logits
    return {
        "task": model.task,
        "map_size": tuple(logits.shape[2:]),
        "ignore_index": model.labels.ignore_index,
        "reduce_labels": model.labels.reduce_labels,
    }


def _tupled(value: Any) -> Any:
    """JSON has lists where the dataclass has tuples."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
