"""The last block for a few tokens only: which families, and layers that are more than weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dynamicvit.backbones import backbone_for
from families import BY_NAME, Family, assert_agree

#: Positions of two kinds where a class token asks: rotated, and a bias of its own.
CLASS_TOKEN = [
    Family("eva_fused", "eva02_tiny_patch14_224", {"global_pool": "token"}, patch=14),
    Family("eva_split", "eva02_base_patch14_224", {"global_pool": "token"}, patch=14),
    Family("beit", "beit_base_patch16_224", {"global_pool": "token"}),
]


class Doubled(nn.Linear):
    """Something that computes more than its weights say."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("name", "read"),
    [("deit", 1), ("deit_distilled", 2), ("siglip", None), ("lvvit", None), ("beit", None)],
)
def test_which_tokens_a_head_reads(name: str, read: int | None) -> None:
    assert backbone_for(BY_NAME[name].backbone()).reads == read


@pytest.mark.parametrize("family", CLASS_TOKEN, ids=lambda family: family.name)
@torch.no_grad()
def test_the_class_token_has_its_place(family: Family) -> None:
    model, images = family.sparse(keep_ratio=0.5).double(), family.images().double()
    assert model.bound.reads == 1
    assert_agree(model(images), model.forward_head(model.forward_tokens(images)), 1e-12)
    model.keep_ratio = 1.0
    assert_agree(model(images), family.dense(model.backbone, images), 1e-12)


@pytest.mark.parametrize("change", ["class", "hook", "instance"])
@torch.no_grad()
def test_a_layer_that_is_more_than_its_weights(change: str) -> None:
    family = BY_NAME["deit"]
    model, images = family.sparse(), family.images()
    plain = model(images)
    attn = model.blocks[-1].attn
    if change == "class":
        attn.qkv.__class__ = Doubled
    elif change == "instance":
        forward = attn.qkv.forward
        attn.qkv.forward = lambda x: 2 * forward(x)
    else:
        attn.qkv.register_forward_hook(lambda layer, inputs, output: 2 * output)
    doubled = model(images)
    assert (doubled - plain).abs().max() > 1e-2, "else it shows nothing"
    assert_agree(doubled, model.forward_head(model.forward_tokens(images)))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_quantized_by_pytorch() -> None:
    """They have no weights to take apart; nothing of the network may do that unasked."""
    family = BY_NAME["deit"]
    model, images = family.sparse(keep_ratio=1.0), family.images()
    plain = model(images)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert 1e-4 < (quantized(images) - plain).abs().max() < 0.5


def test_with_checkpointed_gradients() -> None:
    family = BY_NAME["deit"]
    model, images = family.sparse(), family.images()
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(images).sum().backward()
        gradients.append(model.blocks[-1].attn.qkv.weight.grad.clone())
    assert_agree(gradients[1], gradients[0])


def test_backward_hooks_are_heard() -> None:
    family = BY_NAME["deit"]
    model, images = family.sparse(), family.images()
    heard: list[str] = []
    layers = {"qkv": model.blocks[-1].attn.qkv, "head": model.predictors[0].mlp[0]}
    for name, layer in layers.items():
        layer.register_full_backward_hook(lambda *_, name=name: heard.append(name))
    model(images).sum().backward()
    model.forward_masked(images).keep_scores[0].sum().backward()
    assert set(heard) == set(layers)


@torch.no_grad()
def test_checkpointing_without_gradients_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    family = BY_NAME["deit"]
    model, images = family.sparse(), family.images()
    model.set_grad_checkpointing(True)
    lengths: list[int] = []
    rest = model.bound.after_attention

    def counted(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return rest(block, x, attended)

    monkeypatch.setattr(model.bound, "after_attention", counted)
    model(images)
    assert lengths == [1]
