"""The models that timm finds by name once dynamicvit is imported.

``timm.create_model("dynamicvit_deit_small_patch16_224", keep_ratio=0.7)`` builds timm's
``deit_small_patch16_224`` and sparsifies it. ``pretrained=True`` loads the dense DeiT weights into
the backbone; the prediction modules are fresh either way, so fine-tune before use. Whatever else
timm passes (``num_classes``, ``img_size``, ``drop_path_rate``, ...) goes to the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import (
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model,
    register_model,
)

from dynamicvit.model import DynamicViT, sparsify

PREFIX = "dynamicvit_"
"""What a registered name has before the name of its backbone."""

_BACKBONES = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")

# timm reads this by name at registration. The inputs are the backbone's; without a source of
# weights, because there are none for the prediction modules (timm.list_pretrained stays honest).
default_cfgs = generate_default_cfgs(
    {
        f"{PREFIX}{backbone}": default.to_dict(remove_source=True)
        for backbone in _BACKBONES
        if (default := get_pretrained_cfg(backbone)) is not None
    }
)


def dynamicvit_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> DynamicViT:
    """DeiT-Tiny at 224 px that drops patch tokens; see :mod:`dynamicvit.registry`."""
    return _create("deit_tiny_patch16_224", pretrained, **kwargs)


def dynamicvit_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> DynamicViT:
    """DeiT-Small at 224 px that drops patch tokens; see :mod:`dynamicvit.registry`."""
    return _create("deit_small_patch16_224", pretrained, **kwargs)


def dynamicvit_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DynamicViT:
    """DeiT-Base at 224 px that drops patch tokens; see :mod:`dynamicvit.registry`."""
    return _create("deit_base_patch16_224", pretrained, **kwargs)


def _create(
    backbone: str,
    pretrained: bool,
    keep_ratio: float | Sequence[float] = 0.7,
    stages: Sequence[int] | None = None,
    **backbone_args: Any,
) -> DynamicViT:
    dense = timm.create_model(backbone, pretrained=pretrained, **backbone_args)
    return sparsify(dense, keep_ratio, stages)


for _entry in (
    dynamicvit_deit_tiny_patch16_224,
    dynamicvit_deit_small_patch16_224,
    dynamicvit_deit_base_patch16_224,
):
    if not is_model(_entry.__name__):  # timm warns of a name that is registered twice
        register_model(_entry)
