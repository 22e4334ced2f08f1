"""One small file for each family of backbones; support is decided by class, never guessed."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from torch import nn

from dynamicvit.backbones.base import Answers, Backbone
from dynamicvit.backbones.beit import BeitBackbone
from dynamicvit.backbones.convnext import ConvNeXtBackbone
from dynamicvit.backbones.eva import EvaBackbone
from dynamicvit.backbones.hierarchical import Hierarchical
from dynamicvit.backbones.inflated import InflatedBackbone
from dynamicvit.backbones.lvvit import LVViTBackbone
from dynamicvit.backbones.swin import SwinBackbone, SwinV2Backbone
from dynamicvit.backbones.timm_vit import DistilledBackbone, ViTBackbone
from dynamicvit.errors import UnsupportedBackboneError
from dynamicvit.utils.plugins import load_plugins

__all__ = [
    "BUILT_IN",
    "OPTIONAL",
    "Answers",
    "Backbone",
    "Hierarchical",
    "backbone_for",
    "register_backbone",
]


class _Optional(NamedTuple):
    """Families of a library that need not be installed: imported when a model of it comes.

    Attributes:
        families: as error messages list them before that.
        classes: names of the classes of model that they cover.
        module: registers them when it is imported.
    """

    families: str
    classes: tuple[str, ...]
    module: str


BUILT_IN: tuple[type[Backbone], ...] = (
    ViTBackbone,
    DistilledBackbone,
    EvaBackbone,
    BeitBackbone,
    LVViTBackbone,
    ConvNeXtBackbone,
    SwinBackbone,
    SwinV2Backbone,
    InflatedBackbone,
)
"""Families of what the package's own requirements bring."""

OPTIONAL = {
    "transformers": _Optional(
        "transformers ViT, DeiT, DINOv2, SigLIP (for image classification), EoMT; VideoMAE, ViViT, "
        "V-JEPA 2 (for video classification)",
        (
            "ViTForImageClassification",
            "DeiTForImageClassification",
            "Dinov2ForImageClassification",
            "SiglipForImageClassification",
            "EomtForUniversalSegmentation",
            "VideoMAEForVideoClassification",
            "VivitForVideoClassification",
            "VJEPA2ForVideoClassification",
        ),
        "dynamicvit.backbones.hf",
    )
}
"""Further families, by their library."""

_REFUSED = {
    "TimesformerForVideoClassification": "its divided attention: a token attends to its own place "
    "at other times, and then to its own frame, and neither is whole once tokens are dropped"
}
"""Classes of models that no family can cover, and why."""

_FAMILIES: list[type[Backbone]] = [*BUILT_IN]
_imported: set[str] = set()


def register_backbone(family: type[Backbone]) -> type[Backbone]:
    """Support one more family of backbones; also a decorator of its class.

    It is asked before those that are there, and takes the place of one of the same name and module.

    Args:
        family: the new family.
    """
    # By name, not by identity: a notebook's cell that is run again makes a new class.
    others = [known for known in _FAMILIES if _class_name(known) != _class_name(family)]
    _FAMILIES[:] = [family, *others]
    return family


def backbone_for(module: nn.Module | Backbone) -> Backbone:
    """A network, bound to what its family says of it; one that is bound already as it is.

    Raises:
        UnsupportedBackboneError: naming the class that is not supported, the families that are, and
            the page that adds one.
    """
    if isinstance(module, Backbone):
        return module
    load_plugins()
    _import_families_of(module)
    name = _class_name(type(module))
    for family in _FAMILIES:
        if family.claims(module):
            backbone = family(module)
            reason = backbone.why_not()
            if reason is None:
                return backbone
            raise UnsupportedBackboneError(
                f"{name} is not supported because of {reason}. {_families()}"
            )
    refused = _REFUSED.get(type(module).__name__)
    because = "" if refused is None else f" because of {refused}"
    raise UnsupportedBackboneError(f"{name} is not supported{because}. {_families()}")


def _import_families_of(module: nn.Module) -> None:
    for ancestor in type(module).__mro__:
        library = ancestor.__module__.partition(".")[0]
        if library in OPTIONAL and library not in _imported:
            import_module(OPTIONAL[library].module)
            _imported.add(library)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _families() -> str:
    known = [family.family for family in _FAMILIES]
    others = [more.families for library, more in OPTIONAL.items() if library not in _imported]
    listed = "; ".join([*known, *others])
    return f"Supported families: {listed}. To add one: docs/adding-a-backbone.md"
