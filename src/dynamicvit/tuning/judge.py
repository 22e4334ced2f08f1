"""How far a schedule's answers are from the dense network's, remembered by schedule."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, eval_mode, segments
from dynamicvit.data import ImageData, Loader, images_digest, taken_by
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import check_finite, kl_divergence
from dynamicvit.evaluation.predictions import unlabeled_images, weights_of
from dynamicvit.tuning.space import Counts, Space
from dynamicvit.utils.fields import MOST_NUMBER, number, read_json
from dynamicvit.utils.files import write_text
from dynamicvit.utils.outputs import WRITER
from dynamicvit.utils.words import inputs_called, shortened

Part = Literal["few", "search", "held-out", "all"]
"""Which images: some of those searched with, all of these, those that decide in the end, or all."""

#: Fewer images than this say nothing about a schedule; and as many are tried first.
LEAST_IMAGES, FEW = 32, 64

#: Standard errors by which a found schedule has to be better.
CERTAIN = 2.0

#: Images in a batch.
_BATCH = 32

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """How near a schedule's answers are to the dense ones.

    Attributes:
        kl: mean KL divergence of the answers from the dense network's, in nats.
        agreement: share of the images with the same highest logit; of a segmentation model of the
            patches, in the images' centers.
    """

    kl: float
    agreement: float


@dataclass(frozen=True)
class Gain:
    """By how much one schedule's mean KL is below another's, measured on the same images.

    Attributes:
        mean: in nats.
        error: one standard error of it: how far it falls by the choice of the images.
    """

    mean: float
    error: float

    @property
    def is_certain(self) -> bool:
        """Whether it is more than chance brings."""
        return self.mean > CERTAIN * self.error


class Notebook:
    """What has been measured, in a file if there is one: a stopped search goes on from there.

    Args:
        path: of the file; ``None`` to remember nothing beyond this process.
        settings: what everything in it depends on.

    Attributes:
        resumed: number of verdicts that were there at first.

    Raises:
        InputError: for a file of other settings, or that can't be read.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.verdicts: dict[str, list[float]] = {}
        self.times: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)
        self.resumed = len(self.verdicts)

    def _read(self, path: Path) -> None:
        found = read_json(path)
        known = isinstance(found, dict) and found.get("format_version") == _FORMAT_VERSION
        sound = known and all(isinstance(found.get(key), dict) for key in _CONTENT)
        if not sound or not _are_sound(found["tried"], found["times"]):
            raise InputError(f"{path}: is no record of dynamicvit tune; delete it to begin again")
        for key, value in self.settings.items():
            if found["settings"].get(key) != value:
                before = shortened(found["settings"].get(key))
                raise InputError(
                    f"{path}: was begun with {key} {before}, now it is "
                    f"{value}; give another output, or delete it to begin again"
                )
        self.verdicts, self.times = found["tried"], found["times"]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is None:
            return
        content = dict(zip(_CONTENT, (self.settings, self.verdicts, self.times), strict=True))
        about = {"written_by": WRITER, "format_version": _FORMAT_VERSION, **content}
        write_text(self.path, json.dumps(about, indent=1) + "\n")


_CONTENT = ("settings", "tried", "times")
_NUMBER, _TIME = number(0, MOST_NUMBER).holds, number(0, MOST_NUMBER, above=True).holds


def _are_sound(tried: dict[str, Any], times: dict[str, Any]) -> bool:
    """Whether a record's verdicts and times are of the kinds that are written."""
    if not all(re.fullmatch(r"[a-z-]+ \d{1,9}(,\d{1,9})*", key) for key in tried):
        return False
    if not all(
        isinstance(v, list) and len(v) == 2 and all(map(_NUMBER, v)) for v in tried.values()
    ):
        return False
    for each in times.values():
        if not isinstance(each, dict):
            return False
        if each.keys() == {"dense", "pruned"}:
            sound = all(map(_TIME, each.values()))
        else:
            curves = each.get("curves")
            sound = (
                each.keys() == {"fixed", "curves", "blocks", "stage"}
                and _NUMBER(each["fixed"])
                and isinstance(curves, dict)
                and isinstance(each["blocks"], list)
                and all(isinstance(curve, dict) and curve for curve in curves.values())
                and all(count.isdecimal() for curve in curves.values() for count in curve)
                and all(_NUMBER(value) for curve in curves.values() for value in curve.values())
                and all(
                    isinstance(n, str) and n in curves for n in [*each["blocks"], each["stage"]]
                )
            )
        if not sound:
            return False
    return True


class Judge:
    """Runs schedules on images and compares their answers with the dense network's.

    Args:
        model: whose method and weights are used; its own schedule is not changed.
        space: of the schedules.
        images: ``(B, channels, height, width)``, the first half to search with, the second to
            decide.
        notebook: that remembers verdicts.

    Attributes:
        ran: number of schedules that were run, not remembered.
    """

    def __init__(self, model: DynamicViT, space: Space, images: Tensor, notebook: Notebook) -> None:
        self.model, self.space, self.images, self.notebook = model, space, images, notebook
        half = len(images) // 2
        self.parts = {
            "few": slice(0, min(half, FEW)),
            "search": slice(0, half),
            "held-out": slice(half, len(images)),
            "all": slice(0, len(images)),
        }
        self.ran = 0
        self._dense: Tensor | None = None
        self._divergences: dict[str, Tensor] = {}

    def network(self, counts: Counts) -> DynamicViT:
        """The model with a schedule, sharing its weights, in ``eval()``."""
        schedule = self.space.schedule(counts)
        kind = self.model.method
        network = self.model.like(
            self.model.bound, schedule, kind if self.space.movable else self.model.methods
        )
        network.warns_untrained = False
        return network.eval()

    def __call__(self, counts: Counts, part: Part) -> Verdict:
        """The verdict on a schedule, from memory if it is there."""
        key = _key(counts, part)
        if key not in self.notebook.verdicts:
            self._run(counts, part)
            self.ran += 1
        return Verdict(*self.notebook.verdicts[key])

    def less(self, counts: Counts, than: Counts, part: Part) -> Gain:
        """By how much a schedule's answers are nearer than another's, on the same images."""
        both = [_key(each, part) for each in (than, counts)]
        for key, each in zip(both, (than, counts), strict=True):
            if key not in self._divergences:  # a notebook has the mean only
                self._run(each, part)
        before, after = (self._divergences[key] for key in both)
        less = before - after
        return Gain(float(less.mean()), float(less.std() / len(less) ** 0.5))

    def _run(self, counts: Counts, part: Part) -> None:
        """Put a schedule's verdict into the notebook."""
        rows = self.parts[part]
        with eval_mode(self.model), torch.inference_mode():
            if self._dense is None:
                self._dense = _answers(DenseNetwork(self.model), self.images)
                check_finite(self._dense, "the dense model")
            dense = _rows(self._dense[rows])
            given = _rows(_answers(self.network(counts), self.images[rows]))
        check_finite(given, "the model")
        key = _key(counts, part)
        # Of a map, whose places are not independent of each other, the mean.
        images = rows.stop - rows.start
        self._divergences[key] = kl_divergence(given, dense).double().view(images, -1).mean(dim=1)
        same = (dense.argmax(dim=1) == given.argmax(dim=1)).double().mean()
        self.notebook.verdicts[key] = [float(self._divergences[key].mean()), float(same)]
        self.notebook.save()


def _key(counts: Counts, part: Part) -> str:
    """What a notebook calls a schedule on some of the images."""
    return f"{part} {','.join(map(str, counts))}"


def _answers(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits ``(B, classes)``, or a map of them."""
    return torch.cat([network(batch) for batch in images.split(_BATCH)])


def _rows(logits: Tensor) -> Tensor:
    """Logits as rows: of a map one for each place."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)


def settings_of(model: DynamicViT, space: Space, digest: str, seed: int) -> dict[str, Any]:
    """What verdicts depend on, for a :class:`Notebook`."""
    device = next(model.parameters()).device
    weights = weights_of(model, device)
    return {
        "weights": weights,
        "method": model.method.name,
        "policy": space.policy,
        "stages": list(space.stages),
        "restore_before": space.restore_before,
        "patches": space.num_patches,
        "data": digest,
        "seed": seed,
    }


def read_images(
    model: DynamicViT,
    source: str | os.PathLike[str] | ImageData | Tensor,
    count: int,
    seed: int,
    *,
    image_size: tuple[int, int],
    crop_pct: float | None = None,
    workers: int = 0,
) -> tuple[Tensor, str]:
    """Images to tune on, drawn from a source, and what tells them from others.

    Args:
        model: that says how images are prepared.
        source: as for :class:`~dynamicvit.data.ImageData`; or ``(B, channels, height, width)``,
            normalized, all of which are taken.
        count: how many are drawn.
        seed: of the draw.
        image_size: height and width in pixels.
        crop_pct: as for :func:`~dynamicvit.evaluate`.
        workers: processes that read.

    Raises:
        InputError: for fewer than :data:`LEAST_IMAGES` images, or tensors of another size.
    """
    what = inputs_called(model.bound.frames)
    if isinstance(source, Tensor):
        wanted = model.bound.input_shape(image_size)
        if tuple(source.shape[1:]) != wanted:
            raise InputError(
                f"{what} must be (batch, {', '.join(map(str, wanted))}), got {tuple(source.shape)}"
            )
        _check_number(len(source), what)
        digest = f"{tuple(source.shape)} {float(source.double().sum()):.6g}"
        return source.to(next(model.parameters()).device), digest
    data = source if isinstance(source, ImageData) else unlabeled_images(source)
    if not segments(model):
        data = taken_by(model, data)
    _check_number(len(data), what)
    _check_number(count, what)
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    digest = f"{len(chosen)} of {images_digest([data])[:16]}, {image_size}, crop {crop_pct}"
    prepared = data.for_evaluation(model, image_size, crop_pct)
    loader = Loader(prepared.subset(chosen), _BATCH, num_workers=workers)
    images = torch.cat([batch.images for batch in loader])
    _check_number(len(images), what)
    return images.to(next(model.parameters()).device), digest


def _check_number(count: int, what: str) -> None:
    if count < LEAST_IMAGES:
        raise InputError(f"{count} {what} are too few to tune on: give at least {LEAST_IMAGES}")
