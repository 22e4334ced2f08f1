"""What a comparison is given, checked before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.checkpoints.loading import load
from dynamicvit.comparison.rows import Candidate
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of, own_image_size
from dynamicvit.errors import InputError

#: Keys of a recipe that a comparison sets itself, and by what.
_OWN = {
    **dict.fromkeys(("model", "image_size"), "model"),
    **dict.fromkeys(("method", "policy", "stages"), "methods"),
    **dict.fromkeys(("images", "epochs"), "images"),
    **{"keep_ratio": "macs", "seed": "seeds"},
}


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse values of the recipe that a comparison sets itself.

    Raises:
        InputError: naming the one.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in _OWN:
            raise InputError(f"{override}: a comparison sets {key} itself, by its {_OWN[key]}")


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


def trained_before(name: str, backbone: nn.Module) -> Candidate:
    """The candidate of a trained model.

    Raises:
        InputError: for an untrained one, or one of other classes.
    """
    model = load(name)
    if any(method.is_fresh for method in model.methods):
        raise InputError(f"{name} is not trained: name its method instead, {model.method.name}")
    classes = backbone_for(backbone).num_classes
    if model.num_classes != classes:
        raise InputError(f"{name} has {model.num_classes} classes, the dense network {classes}")
    (height, width), dense = own_image_size(model), own_image_size(backbone)
    if (height, width) != dense:
        raise InputError(
            f"{name} takes images of {height}x{width} pixels, the dense network of "
            f"{dense[0]}x{dense[1]}"
        )
    return Candidate(name, model.method.name, model.policy, saved=name)
