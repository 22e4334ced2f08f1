"""What a comparison is given, checked: images, budgets, methods, and models trained before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dynamicvit.budgets import parse_budget
from dynamicvit.checkpoints.loading import load
from dynamicvit.comparison.measuring import images_for
from dynamicvit.comparison.rows import Candidate, candidate_named
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import (
    backbone_of,
    bound_of,
    check_classifies,
    core_of,
    own_image_size,
    segments,
)
from dynamicvit.costs import DENSE, meta_copy, schedule_macs
from dynamicvit.data import ImageData, class_map_for, frames_of, split
from dynamicvit.data.class_names import own_class_names
from dynamicvit.errors import InputError, UnsupportedBackboneError
from dynamicvit.methods import METHODS

#: Share of the images that is evaluated on where no others are named.
_HELD_OUT = 0.1


def say_if_sparse(model: nn.Module, tell: Callable[[str], None]) -> None:
    """A model that has learned to drop tokens is not taken for dense without a word."""
    core = core_of(model)
    if not isinstance(core, DynamicViT) or not core.schedule.stages:
        return
    if not all(method.is_fresh for method in core.methods):
        tell(
            f"the model is not dense: it drops tokens ({core.method.name}, {core.policy}); the "
            "backbone inside it, trained with it, is taken for dense. --trained compares the model "
            "itself"
        )


def dense_of(model: nn.Module) -> nn.Module:
    """What the rows are made of: the dense network inside, or the dense segmentation model.

    Raises:
        InputError: for a model without classes.
    """
    core = core_of(model)
    if isinstance(core, DynamicViT) and segments(core):
        return core.like(core.bound, DENSE).eval()
    check_classifies(model, "compare")
    return backbone_of(model).eval()


def trained_before(name: str, backbone: nn.Module) -> Candidate:
    """The candidate of a trained model.

    Raises:
        InputError: for an untrained one, or one of other classes.
    """
    model = load(name)
    if any(method.is_fresh for method in model.methods):
        raise InputError(f"{name} is not trained: name its method instead, {model.method.name}")
    if segments(model) != segments(backbone):
        task = "segmentation" if segments(model) else "classification"
        raise InputError(f"{name} is for {task}, and the dense model is not")
    network = backbone if isinstance(backbone, DynamicViT) else bound_of(backbone)
    assert network is not None
    if model.num_classes != network.num_classes:
        raise InputError(
            f"{name} has {model.num_classes} classes, the dense network {network.num_classes}"
        )
    ours, theirs = own_class_names(model)[:1], own_class_names(network)[:1]
    if ours and theirs and ours != theirs:
        listed = [", ".join(names[:3]) for names in (*ours, *theirs)]
        raise InputError(f"{name} has the classes {listed[0]}, ..., the dense network {listed[1]}")
    (height, width), dense = own_image_size(model), own_image_size(backbone)
    if (height, width) != dense:
        raise InputError(
            f"{name} takes images of {height}x{width} pixels, the dense network of "
            f"{dense[0]}x{dense[1]}"
        )
    return Candidate(name, model.method.name, model.policy, saved=name)


def sources_of(
    backbone: nn.Module,
    data: str | Path,
    validation: str | Path | None,
    unlabeled: Sequence[str | Path],
    train: bool,
    **how: Any,
) -> tuple[ImageData, list[ImageData]]:
    """What is evaluated on, and what is trained on; ``how`` as for :func:`images_for`."""
    images = images_for(backbone, data, **how)
    more = [images_for(backbone, path, labeled=False, **how) for path in unlabeled]
    if validation is not None:
        evaluated = images_for(backbone, validation, **how)
    elif not train:
        return images, []
    else:
        images, evaluated = split(images, _HELD_OUT)
    return evaluated, [images, *more] if train else []


def with_class_maps(
    sources: Sequence[ImageData],
    backbone: nn.Module,
    class_map: str | None,
    tell: Callable[[str], None],
) -> list[ImageData]:
    """The same sources, their labels in the network's classes."""
    if segments(backbone):
        if class_map is not None:
            raise InputError(f"class map {class_map}: masks name classes by index; leave it out")
        return list(sources)
    classes = bound_of(backbone)  # and how the network names them
    maps = [
        class_map_for(source, classes, class_map) if source.labeled else None for source in sources
    ]
    for origin in dict.fromkeys(chosen.origin for chosen in maps if chosen is not None):
        tell(f"class map: {origin}")
    return [
        source if chosen is None else source.with_class_map(chosen.index)
        for source, chosen in zip(sources, maps, strict=True)
    ]


def fractions_of(backbone: nn.Module, budgets: Sequence[str | float]) -> list[float]:
    """Shares of the dense MACs, each once."""
    dense = schedule_macs(backbone, DENSE)
    found = []
    for budget in budgets:
        fraction = round(parse_budget(budget).of(dense) / dense, 4)
        if not 0 < fraction < 1:
            raise InputError(f"a budget is less than dense, got {budget}: {fraction:g} of dense")
        found.append(fraction)
    return list(dict.fromkeys(found))


def possible_of(
    backbone: nn.Module,
    chosen: Sequence[Candidate],
    fractions: Sequence[float],
    asked: str | Sequence[str],
    tell: Callable[[str], None],
) -> list[Candidate]:
    """The candidates that this network can have; one that was named must be among them."""
    words = [name.strip() for name in (asked.split(",") if isinstance(asked, str) else asked)]
    named = [candidate_named(name) for name in words if name not in ("all", "ablations")]
    named = [candidate.over(backbone).name for candidate in named]
    shapes, possible = meta_copy(backbone), []
    clips = frames_of(backbone) is not None
    for candidate in dict.fromkeys(candidate.over(backbone) for candidate in chosen):
        if METHODS[candidate.method].for_clips and not clips and candidate.name not in named:
            continue  # nothing to say of it
        try:
            for fraction in fractions:
                candidate.build(shapes, fraction)
            possible.append(candidate)
        except UnsupportedBackboneError:
            raise
        except InputError as error:
            if candidate.name in named:
                raise InputError(f"{candidate.name}: {error}") from None
            tell(f"left out {candidate.name}: {error}")
    return possible
