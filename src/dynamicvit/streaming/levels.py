"""Levels of a stream: one model at several keep ratios, or several models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dynamicvit.backbones.inflated import InflatedBackbone
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import own_image_size, segments
from dynamicvit.core.schedule import Schedule
from dynamicvit.data import class_names, frames_of
from dynamicvit.data.transforms import image_config
from dynamicvit.errors import InputError
from dynamicvit.evaluation.windows import sliding_windows
from dynamicvit.runtimes import ExportedModel
from dynamicvit.streaming.window import Clip, Embedding

#: Runs of each level that warm up, and runs that are timed.
_UNTIMED, _TIMED = 2, 5


@dataclass(frozen=True)
class Level:
    """A model at a keep ratio.

    Attributes:
        model: its name.
        schedule: its stages and keep ratios.
        classify: from ``(1, C, H, W)``, or a clip, to logits ``(classes,)``, float32 on the CPU; of
            a segmentation model ``(classes, H, W)``, by windows.
        keep_ratio: ρ; None where no ρ gives the stages' ratios.
    """

    model: str
    schedule: Schedule
    classify: Callable[[Tensor | Clip], Tensor]
    keep_ratio: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "keep_ratio": self.keep_ratio,
            "keep_ratios": self.schedule.keep_ratios,
        }

    def __str__(self) -> str:
        ratios = self.schedule.keep_ratios if self.keep_ratio is None else (self.keep_ratio,)
        return f"ρ {', '.join(f'{ratio:.3g}' for ratio in ratios)}"


def levels_of(
    models: Mapping[str, PrunedClassifier],
    keep_ratios: Sequence[float] = (),
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> list[Level]:
    """The levels, from the one that keeps most to the one that keeps least.

    Args:
        models: by name, in ``eval()``; several must agree in classes and preprocessing.
        keep_ratios: of one model; by default each model has its own.
        device: of PyTorch's models.
        precision: of autocast; None for float32.

    Raises:
        InputError: for models that differ, have no classes or take several images at once, and for
            keep ratios out of range or of a model whose ratio is fixed.
    """
    (first_name, first), *others = models.items()
    for name, model in models.items():
        if model.num_classes < 1:
            raise InputError(f"{name} has no classifier: stream takes classifiers and segmenters")
        batch = model.description.batch if isinstance(model, ExportedModel) else None
        if batch not in (None, 1):
            raise InputError(
                f"{name} takes {batch} images at once and a stream has one: export without "
                "--batch, or with --batch 1"
            )
    for name, model in others:
        _check_same(first_name, first, name, model)
    embedding = _embedding_of(first) if len(models) == 1 else None
    run = partial(_classify, device=device, precision=precision, embedding=embedding)
    if not keep_ratios:
        levels = [_level(name, each, run) for name, each in models.items()]
    elif others:
        raise InputError(
            f"keep ratio {keep_ratios[0]} is for one model, got {len(models)}: each has its own"
        )
    elif not isinstance(first, DynamicViT):
        raise InputError(f"the keep ratio of {first_name} is fixed: omit --keep-ratio")
    else:
        ratios = dict.fromkeys(keep_ratios)
        levels = [_level(first_name, first.at(ratio), run, ratio) for ratio in ratios]
    return sorted(levels, key=lambda level: -fmean(level.schedule.keep_ratios or (1.0,)))


def costs_of(
    levels: Sequence[Level], images: Tensor, *, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Warm up and measure the cost of each level in seconds, all of them in turn.

    The shortest time counts, as the machine may be busy; a level that keeps more is taken to cost
    no less.

    Args:
        levels: from the one that keeps most.
        images: ``(1, C, H, W)``, or a clip ``(1, T, C, H, W)``, of which nothing is reused; any.
        clock: the time in seconds.
    """
    times: list[list[float]] = [[] for _ in levels]
    for round_ in range(_UNTIMED + _TIMED):
        for level, own in zip(levels, times, strict=True):
            began = clock()
            level.classify(images)
            if round_ >= _UNTIMED:
                own.append(clock() - began)
    shortest = [min(own) for own in times]
    return [max(shortest[index:]) for index in range(len(shortest))]


def _level(
    name: str, model: PrunedClassifier, run: Callable[..., Tensor], ratio: float | None = None
) -> Level:
    schedule = model.schedule
    return Level(name, schedule, partial(run, model), ratio or schedule.keep_ratio)


def _embedding_of(model: PrunedClassifier) -> Embedding | None:
    """What reuses embedded tubelets; ``None`` for a model whose embedding is part of something."""
    if not isinstance(model, DynamicViT) or model.method.looks_at_motion:
        return None
    return Embedding(model.bound) if type(model.bound) is InflatedBackbone else None


@torch.inference_mode()
def _classify(
    model: PrunedClassifier,
    images: Tensor | Clip,
    *,
    device: torch.device | str,
    precision: torch.dtype | None,
    embedding: Embedding | None,
) -> Tensor:
    kind = torch.device(device).type
    with torch.autocast(kind, dtype=precision, enabled=precision is not None):
        if isinstance(images, Clip):
            seen = images.stacked().to(device) if embedding is None else embedding(images, device)
            return model(seen)[0].float().cpu()
        images = images.to(device)
        if segments(model):  # type: ignore[arg-type]
            logits = sliding_windows(model, images[0], own_image_size(model))  # type: ignore[arg-type]
        else:
            logits = model(images)[0]
    return logits.float().cpu()  # which also waits for a GPU


def _check_same(
    first_name: str, first: PrunedClassifier, name: str, model: PrunedClassifier
) -> None:
    """Frames are prepared and classes named once for all models."""
    if segments(first) != segments(model):  # type: ignore[arg-type]
        raise InputError(f"{first_name} and {name} can't take turns: one segments, one classifies")
    if frames_of(first) != frames_of(model):  # type: ignore[arg-type]
        raise InputError(f"{first_name} and {name} can't take turns: clips of unlike frames")
    configs = [image_config(each) for each in (first, model)]
    for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        ours = configs[0][key]
        if configs[1][key] != ours:
            raise InputError(
                f"{first_name} and {name} can't take turns: {key} {ours} and {configs[1][key]}"
            )
    if class_names(first) != class_names(model):
        raise InputError(f"{first_name} and {name} can't take turns: their classes differ")
