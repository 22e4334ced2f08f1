"""The models that timm finds by name once dynamicvit is imported.

``timm.create_model("dynamicvit_deit_small_patch16_224", keep_ratio=0.7)`` builds timm's
``deit_small_patch16_224`` and sparsifies it. ``pretrained=True`` loads the dense weights into the
backbone; the prediction modules are always fresh, so fine-tune before use. timm's other arguments
(``num_classes``, ``img_size``, ``drop_path_rate``, ...) go to the backbone. ``features_only=True``
gives maps of every patch after the last three blocks, or those of ``out_indices``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models._features import FeatureGetterNet
from torch import nn

import dynamicvit.backbones.networks  # noqa: F401 (some of the names below are registered there)
from dynamicvit.core.schedule import Policy
from dynamicvit.sparsification import sparsify

PREFIX = "dynamicvit_"
"""Prefix of a registered name, before that of its backbone."""

BACKBONES = (
    "deit_tiny_patch16_224",
    "deit_256_patch16_224",
    "deit_small_patch16_224",
    "deit_small_patch16_384",
    "deit_base_patch16_224",
    "deit_base_patch16_384",
    "lvvit_t",
    "lvvit_s",
    "lvvit_m",
    "lvvit_l",
    "vit_large_patch16_224",
    "vit_large_patch16_384",
    "vit_huge_patch14_224",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
)
"""timm's names of the backbones: the paper's, and larger ones. ``sparsify`` takes many more."""

# timm reads this at registration: the backbone's input, and no source of weights, as there are none
# for the prediction modules.
default_cfgs = generate_default_cfgs(
    {
        f"{PREFIX}{backbone}": default.to_dict(remove_source=True)
        for backbone in BACKBONES
        if (default := get_pretrained_cfg(backbone)) is not None
    }
)


def _entry_point(backbone: str) -> Callable[..., nn.Module]:
    """The function that timm calls to build a model, named as the model is registered."""

    def create(
        pretrained: bool = False,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        policy: Policy | None = None,
        **backbone_args: Any,
    ) -> nn.Module:
        features = backbone_args.pop("features_only", False)
        indices = backbone_args.pop("out_indices", 3)
        dense = timm.create_model(backbone, pretrained=pretrained, **backbone_args)
        sparse = sparsify(dense, keep_ratio, stages, policy, "dynamicvit")
        return FeatureGetterNet(sparse, indices) if features else sparse

    create.__name__ = create.__qualname__ = f"{PREFIX}{backbone}"
    create.__doc__ = f"timm's {backbone} that drops patch tokens; see :mod:`{__name__}`."
    return create


for _backbone in BACKBONES:
    _entry = _entry_point(_backbone)  # kept here, where timm lists it in __all__
    globals()[_entry.__name__] = register_model(_entry)
