"""What must hold with the oldest timm that pyproject.toml allows; test_oldest_timm.py runs it.

Each family answers as timm does where nothing is dropped, obeys the law, and is saved.
"""

from __future__ import annotations

import tempfile

import timm
import torch
from timm.optim import param_groups_layer_decay

from dynamicvit import DynamicViT
from families import BY_NAME, assert_agree

#: Each class of network and block, by way of pooling and placing.
NAMES = (
    "deit",
    "deit_distilled",
    "registers",
    "dinov2_registers",
    "clip",
    "siglip",
    "eva02_fused",
    "eva02_split",
    "dinov3",
    "beit_both",
    "lvvit",
    "map_all",
)


@torch.no_grad()
def check(name: str) -> None:
    """One family."""
    family = BY_NAME[name]
    model, images, decisions = family.sparse(), family.images(), family.decisions()
    masked = model.forward_masked(images, decisions).logits
    assert_agree(model.forward_pruned(images, decisions).logits, masked)
    if not family.kwargs:  # an older timm keeps no record of other arguments
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = DynamicViT.from_pretrained(folder)
        assert torch.equal(again(images), model(images))
    assert [len(each) for each in model.forward_intermediates(images, indices=2)] == [2, 2]
    spared = model.no_weight_decay()
    if name.endswith("registers"):
        assert "backbone.reg_token" in spared, spared
    groups = param_groups_layer_decay(model, 0.05, spared, layer_decay=0.5)
    assert len({group["lr_scale"] for group in groups}) >= model.depth + 2
    model.keep_ratios = (1.0, 1.0, 1.0)
    assert_agree(model(images), model.backbone(images))


if __name__ == "__main__":
    for family_name in NAMES:
        check(family_name)
    features = timm.create_model(
        "dynamicvit_deit_tiny_patch16_224", features_only=True, depth=4, keep_ratio=0.5
    )
    assert [tuple(each.shape) for each in features(torch.randn(1, 3, 224, 224))] == [
        (1, 192, 14, 14)
    ] * 3
    print(f"timm {timm.__version__}")
