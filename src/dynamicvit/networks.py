"""What several parts ask of any network, a DynamicViT or a dense one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def own_image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels that a network was built for.

    ``pretrained_cfg`` says what the weights were trained at, which ``img_size=...`` leaves behind.
    """
    backbone: Any = getattr(model, "backbone", model)
    built_for = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if built_for is not None:
        return tuple(built_for)
    config = getattr(backbone, "pretrained_cfg", None) or {}
    return tuple(config.get("input_size", (3, 224, 224))[1:])


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """The models in ``eval()``, and each of their modules back in its own mode afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
