"""What is asked of any network: its image size, and to be in ``eval()`` for a while."""

from __future__ import annotations

import pytest
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dynamicvit import sparsify
from dynamicvit.networks import eval_mode, own_image_size


def test_the_size_a_network_was_built_for() -> None:
    small = VisionTransformer(img_size=(32, 48), patch_size=8, embed_dim=32, depth=4, num_heads=2)
    small.pretrained_cfg = {"input_size": (3, 96, 64)}  # what its weights were trained at
    assert own_image_size(small) == own_image_size(sparsify(small)) == (32, 48)
    small.patch_embed.img_size = None
    assert own_image_size(small) == own_image_size(sparsify(small)) == (96, 64)
    assert own_image_size(nn.Linear(1, 1)) == (224, 224)


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
