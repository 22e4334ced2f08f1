"""One small file for each family of backbones; support is decided by class, never guessed."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from torch import nn

from dynamicvit.backbones.base import Adapter
from dynamicvit.backbones.beit import BeitAdapter
from dynamicvit.backbones.eva import EvaAdapter
from dynamicvit.backbones.lvvit import LVViTAdapter
from dynamicvit.backbones.vit import ViTAdapter
from dynamicvit.errors import UnsupportedBackboneError
from dynamicvit.layers.tokens import Heads

__all__ = [
    "BUILT_IN",
    "OPTIONAL",
    "Adapter",
    "Heads",
    "adapter_for",
    "register_adapter",
]


class _Optional(NamedTuple):
    """Families of a library that need not be installed: imported when a model of it comes.

    Attributes:
        families: as error messages list them before that.
        classes: names of the classes of model that they cover.
        module: registers their adapters when it is imported.
    """

    families: str
    classes: tuple[str, ...]
    module: str


BUILT_IN = (ViTAdapter(), EvaAdapter(), BeitAdapter(), LVViTAdapter())
"""Adapters of what the package's own requirements bring."""

OPTIONAL = {
    "transformers": _Optional(
        "transformers ViT, DeiT, DINOv2, SigLIP (for image classification)",
        (
            "ViTForImageClassification",
            "DeiTForImageClassification",
            "Dinov2ForImageClassification",
            "SiglipForImageClassification",
        ),
        "dynamicvit.backbones.hf",
    )
}
"""Further families, by their library."""

_ADAPTERS: list[Adapter] = [*BUILT_IN]
_imported: set[str] = set()


def register_adapter(adapter: Adapter) -> None:
    """Support one more family of backbones.

    It is asked before those that are there, and takes the place of one of the same class name and
    module.

    Args:
        adapter: of the new family.
    """
    # By name, not by identity: a notebook's cell that is run again makes a new class.
    others = [known for known in _ADAPTERS if _class_name(known) != _class_name(adapter)]
    _ADAPTERS[:] = [adapter, *others]


def adapter_for(backbone: nn.Module) -> Adapter:
    """The adapter for a backbone.

    Raises:
        UnsupportedBackboneError: naming the class that is not supported and the families that are.
    """
    _import_families_of(backbone)
    name = f"{type(backbone).__module__}.{type(backbone).__qualname__}"
    for adapter in _ADAPTERS:
        if adapter.claims(backbone):
            reason = adapter.why_not(backbone)
            if reason is None:
                return adapter
            raise UnsupportedBackboneError(
                f"{name} is not supported because of {reason}. Supported families: {_families()}"
            )
    raise UnsupportedBackboneError(f"{name} is not supported. Supported families: {_families()}")


def _import_families_of(backbone: nn.Module) -> None:
    for ancestor in type(backbone).__mro__:
        _import(ancestor.__module__.partition(".")[0])


def _import(library: str) -> None:
    if library in OPTIONAL and library not in _imported:
        import_module(OPTIONAL[library].module)
        _imported.add(library)


def _class_name(adapter: Adapter) -> str:
    return f"{type(adapter).__module__}.{type(adapter).__qualname__}"


def _families() -> str:
    known = [adapter.family for adapter in _ADAPTERS]
    others = [more.families for library, more in OPTIONAL.items() if library not in _imported]
    return "; ".join([*known, *others])
