"""One small file for each family of backbones; support is decided by class, never guessed."""

from __future__ import annotations

from torch import nn

from dynamicvit.adapters.base import Adapter
from dynamicvit.adapters.beit import BeitAdapter
from dynamicvit.adapters.eva import EvaAdapter
from dynamicvit.adapters.vit import ViTAdapter
from dynamicvit.errors import UnsupportedBackboneError

__all__ = ["Adapter", "adapter_for"]

_ADAPTERS: tuple[Adapter, ...] = (ViTAdapter(), EvaAdapter(), BeitAdapter())


def adapter_for(backbone: nn.Module) -> Adapter:
    """The adapter for a backbone.

    Raises:
        UnsupportedBackboneError: naming the class that is not supported and the families that are.
    """
    name = f"{type(backbone).__module__}.{type(backbone).__qualname__}"
    families = "; ".join(adapter.family for adapter in _ADAPTERS)
    for adapter in _ADAPTERS:
        if adapter.claims(backbone):
            reason = adapter.why_not(backbone)
            if reason is None:
                return adapter
            raise UnsupportedBackboneError(
                f"{name} is not supported because of {reason}. Supported families: {families}"
            )
    raise UnsupportedBackboneError(f"{name} is not supported. Supported families: {families}")
