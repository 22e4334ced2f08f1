"""What is asked of any network: its image size, and to be in ``eval()`` for a while."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dynamicvit import sparsify
from dynamicvit.core.networks import (
    backbone_of,
    bound_of,
    core_of,
    eval_mode,
    image_channels,
    own_image_size,
)


def test_the_size_a_network_was_built_for() -> None:
    small = VisionTransformer(img_size=(32, 48), patch_size=8, embed_dim=32, depth=4, num_heads=2)
    small.pretrained_cfg = {"input_size": (3, 96, 64)}  # what its weights were trained at
    assert own_image_size(small) == own_image_size(sparsify(small, method="dynamicvit")) == (32, 48)
    small.patch_embed.img_size = None
    assert own_image_size(small) == own_image_size(sparsify(small, method="dynamicvit")) == (96, 64)
    assert own_image_size(nn.Linear(1, 1)) == (224, 224)


def test_the_channels_of_its_images() -> None:
    gray = VisionTransformer(in_chans=1, patch_size=16, embed_dim=32, depth=4, num_heads=2)
    assert image_channels(gray) == image_channels(sparsify(gray, method="dynamicvit")) == 1
    unknown = nn.Conv2d(5, 1, 1)
    assert image_channels(unknown) == 3, "as timm supposes"
    unknown.in_chans = 5
    assert image_channels(unknown) == 5


def test_what_is_inside() -> None:
    dense = VisionTransformer(patch_size=16, embed_dim=32, depth=4, num_heads=2)
    model = sparsify(dense, method="dynamicvit")
    wrapped = torch.compile(model, backend="eager")
    around = nn.Module()
    around.dynamicvit = model
    for outer in (model, wrapped, around):
        assert core_of(outer) is model
        assert backbone_of(outer) is dense
    assert core_of(dense) is backbone_of(dense) is dense
    around.dynamicvit = nn.Identity()  # a module of that name that is none
    assert core_of(around) is around
    assert bound_of(dense) is not None
    assert bound_of(around) is None


def test_each_module_gets_its_own_mode_back_even_after_an_error() -> None:
    one, other = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), nn.Linear(1, 1).eval()
    one[1].eval()

    def fail() -> None:
        with eval_mode(one, other):
            assert not any(module.training for module in (*one.modules(), other))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in one.modules()] == [True, True, False]
    assert not other.training
