"""The paper's DeiTs that timm has no name for: timm's code with another width or image size.

Their dense weights were not published, so timm refuses ``pretrained=True``. For DeiT-S at 384 px,
take those of 224 px with resampled positions:
``timm.create_model("deit_small_patch16_224", pretrained=True, img_size=384)``.
"""

from __future__ import annotations

from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn


def _cfg(like: str, **changes: Any) -> dict[str, Any]:
    """timm's description of a model's input and labels, without weights."""
    known = get_pretrained_cfg(like)
    assert known is not None  # timm has the names below
    return known.to_dict(remove_source=True) | changes


# timm reads this at registration.
default_cfgs = generate_default_cfgs(
    {
        "deit_256_patch16_224": _cfg("deit_small_patch16_224"),
        "deit_small_patch16_384": _cfg(
            "deit_small_patch16_224",
            input_size=(3, 384, 384),
            crop_pct=1.0,  # as timm's DeiT-B at this size
        ),
    }
)


@register_model
def deit_256_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-256 of the paper: between DeiT-Ti and DeiT-S, 256 wide with 4 heads."""
    shape = {"patch_size": 16, "embed_dim": 256, "depth": 12, "num_heads": 4}
    return _build("deit_256_patch16_224", pretrained, shape | kwargs)


@register_model
def deit_small_patch16_384(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT-S for images of 384 px."""
    shape = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return _build("deit_small_patch16_384", pretrained, shape | kwargs)


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> VisionTransformer:
    return build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"},
        **arguments,
    )
