"""Giving timm a model by name, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from timm.models import is_model, register_model
from torch import nn

_Entry = TypeVar("_Entry", bound=Callable[..., nn.Module])


def register_once(entry: _Entry) -> _Entry:
    """Register a function that builds a model, unless timm knows a model of that name already.

    timm would warn of a second one, and a model that it gets by itself one day stays its own.
    """
    if not is_model(entry.__name__):
        register_model(entry)
    return entry
