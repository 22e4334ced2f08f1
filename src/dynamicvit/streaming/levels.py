"""What a stream may be classified with: one model at several keep ratios, or several models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.data import class_names
from dynamicvit.errors import InputError
from dynamicvit.runtimes import ExportedModel

#: Runs of each level before any is timed: the first ones allocate and compile.
_UNTIMED = 2

#: Timed runs of each level.
_TIMED = 5


@dataclass(frozen=True)
class Level:
    """A model at a keep ratio.

    Attributes:
        model: the model's name.
        schedule: what it drops.
        classify: logits ``(classes,)``, float32 on the CPU, of ``(1, channels, height, width)``.
    """

    model: str
    schedule: Schedule
    classify: Callable[[Tensor], Tensor]

    @property
    def keep_ratio(self) -> float | None:
        """ρ, if the stages' ratios are ρ, ρ², ρ³, ...; else ``None``."""
        return self.schedule.keep_ratio

    def as_dict(self) -> dict[str, Any]:
        """For JSON; ``keep_ratio`` is null where the stages' ratios are no powers of one."""
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
        keep_ratios: of one model that takes any; by default each model has its own.
        device: where PyTorch's models are.
        precision: of autocast; ``None`` for float32.

    Raises:
        InputError: for models that don't go together, know no classes or take several images at
            once, and keep ratios that can't be, or can't be set.
    """
    pairs = list(models.items())
    (first_name, first), *others = pairs
    for name, model in pairs:
        if model.num_classes < 1:
            raise InputError(f"{name} has no classifier, so there is no answer to give")
        batch = model.description.batch if isinstance(model, ExportedModel) else None
        if batch not in (None, 1):
            raise InputError(
                f"{name} takes {batch} images at a time, and a stream has one: export without "
                "--batch, or with --batch 1"
            )
    for name, model in others:
        _check_same(first_name, first, name, model)
    run = partial(_classify, device=device, precision=precision)
    if not keep_ratios:
        levels = [
            Level(name, model.schedule, partial(run, model)) for name, model in models.items()
        ]
    else:
        if others:
            raise InputError(
                "several models have a keep ratio each: leave --keep-ratio out, or give one model"
            )
        if not isinstance(first, DynamicViT):
            raise InputError(f"the keep ratio of {first_name} is fixed: leave --keep-ratio out")
        levels = [_at(first_name, first, ratio, run) for ratio in dict.fromkeys(keep_ratios)]
    return sorted(levels, key=_share, reverse=True)


def costs_of(
    levels: Sequence[Level], images: Tensor, *, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Warm up, and measure what each level costs here, in seconds; all of them in turn.

    The shortest time counts, as others may be at work on the machine; and a level that keeps more
    is taken to cost no less.

    Args:
        levels: the levels.
        images: ``(1, channels, height, width)``; what is on them does not matter.
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


def _at(name: str, model: DynamicViT, ratio: float, run: Callable[..., Tensor]) -> Level:
    now = model.schedule
    schedule = Schedule.for_depth(model.depth, ratio, now.stages, now.policy)

    def classify(images: Tensor) -> Tensor:
        model.keep_ratio = ratio
        return run(model, images)

    return Level(name, schedule, classify)


@torch.inference_mode()
def _classify(
    model: PrunedClassifier,
    images: Tensor,
    *,
    device: torch.device | str,
    precision: torch.dtype | None,
) -> Tensor:
    images = images.to(device)
    with torch.autocast(images.device.type, dtype=precision, enabled=precision is not None):
        logits = model(images)
    return logits[0].float().cpu()  # which also waits for a GPU


def _share(level: Level) -> float:
    """Kept share of the patches, of all stages."""
    return fmean(level.schedule.keep_ratios or (1.0,))


def _check_same(
    first_name: str, first: PrunedClassifier, name: str, model: PrunedClassifier
) -> None:
    """Each frame is prepared once and named once, whichever model it goes to."""
    configs = [resolve_model_data_config(each) for each in (first, model)]
    for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        ours = configs[0][key]
        if configs[1][key] != ours:
            raise InputError(
                f"{first_name} and {name} can't take turns: {key} {ours} and {configs[1][key]}"
            )
    if class_names(first) != class_names(model):
        raise InputError(f"{first_name} and {name} can't take turns: their classes differ")


def milliseconds(seconds: float | None) -> float | None:
    """Rounded to microseconds: clocks are no finer."""
    return None if seconds is None else round(seconds * 1e3, 3)
