"""Which family covers a network, and families from outside the package."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dynamicvit import (
    DynamicViT,
    InputError,
    UnsupportedBackboneError,
    backbones,
    count_macs,
    schedule_macs,
    sparsify,
)
from dynamicvit.backbones import Backbone, backbone_for, register_backbone
from dynamicvit.checkpoints.loading import set_drop_path, set_image_size
from dynamicvit.layers.tokens import Tokens
from families import DEIT, assert_agree


class Block(nn.Module):
    """A block of torch's own parts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(x)


class Network(nn.Module):
    """Patches of 4 pixels of images of 16, a class token, and a classifier on it."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 16, 16))
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm = nn.LayerNorm(16)
        self.classify = nn.Linear(16, 3)

    def tokens(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(self.norm(x)[:, 0])


class NetworkBackbone(Backbone):
    """Only what a family must answer; all else is the contract's."""

    family: ClassVar[str] = "networks of this test"
    width = num_features = 16
    num_prefix = 1
    image_size = (16, 16)
    patch_size = (4, 4)

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return type(module) is Network

    @property
    def blocks(self) -> nn.ModuleList:
        return self.module.blocks

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if (height, width) != (16, 16):
            raise InputError(f"images of {height}x{width}, but this backbone takes 16x16")
        return 4, 4

    def embed(self, images: Tensor) -> Tokens:
        return Tokens(self.module.tokens(images), 1, (4, 4))

    def qkv(self, block: Any, x: Tensor, queries: int | None = None) -> Any:
        attn = block.attention
        qkv = nn.functional.linear(block.norm(x), attn.in_proj_weight, attn.in_proj_bias)
        return qkv.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x + block.mlp(x)

    def norm(self, x: Tensor) -> Tensor:
        return self.module.norm(x)

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        return tokens.x[:, 0] if pre_logits else self.module.classify(tokens.x[:, 0])

    @property
    def classifier(self) -> nn.Module:
        return self.module.classify


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> list[type[Backbone]]:
    """The registered families, of which each test has its own list."""
    monkeypatch.setattr(backbones, "_FAMILIES", [*backbones._FAMILIES])
    return backbones._FAMILIES


@pytest.fixture
def network() -> Network:
    register_backbone(NetworkBackbone)
    torch.manual_seed(0)
    return Network().eval()


@torch.no_grad()
def test_the_abstract_methods_are_enough(network: Network) -> None:
    images = torch.randn(3, 1, 16, 16)
    model = sparsify(network, 1.0, method="dynamicvit").eval()
    assert type(model) is DynamicViT
    assert_agree(model(images), network(images))
    assert (model.num_classes, model.num_features, model.in_chans) == (3, 16, 1)
    decisions = [(torch.rand(3, 16) < 0.6).float() for _ in range(3)]
    masked = model.forward_masked(images, decisions).logits
    assert_agree(masked, model.forward_pruned(images, decisions).logits)
    assert (masked - network(images)).abs().max() > 1e-2
    spared = {"backbone.cls", "backbone.places"}
    assert {name for name in model.no_weight_decay() if "norm" not in name} == spared


@pytest.mark.parametrize("keep_ratio", [0.3, 1.0])
def test_macs_by_the_contracts_own_answers(network: Network, keep_ratio: float) -> None:
    model = sparsify(network, keep_ratio, method="dynamicvit")
    assert schedule_macs(model, model.schedule) == count_macs(model)


def test_checkpointing_by_the_contracts_own_answer(network: Network) -> None:
    model, calls = sparsify(network, method="dynamicvit"), []
    network.blocks[0].norm.register_forward_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model.train()(torch.randn(2, 1, 16, 16)).logits.sum().backward()
    assert len(calls) == 2


def test_what_the_contract_refuses_until_a_family_answers(network: Network, tmp_path: Any) -> None:
    model = sparsify(network, method="dynamicvit")
    with pytest.raises(InputError, match="networks of this test: the classifier can't be replaced"):
        model.reset_classifier(5)
    with pytest.raises(InputError, match="drop_path must be 0"):
        set_drop_path(model, 0.1)
    set_drop_path(model, 0.0)
    with pytest.raises(InputError, match="can't be described"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="takes 16x16"):
        set_image_size(model, 32)
    assert set_image_size(model, 16) == (16, 16)


def test_a_family_is_unknown_until_it_is_registered(known: list[type[Backbone]]) -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"Network is not supported.*timm Vision"):
        sparsify(Network(), method="dynamicvit")
    register_backbone(NetworkBackbone)
    assert isinstance(backbone_for(Network()), NetworkBackbone)
    with pytest.raises(UnsupportedBackboneError, match="families: networks of this test"):
        sparsify(nn.Linear(3, 3), method="dynamicvit")


def test_a_later_family_goes_first_and_registering_again_replaces(
    known: list[type[Backbone]],
) -> None:
    before = len(known)
    for family in ("better", "better still"):  # a notebook's cell that is run again

        @register_backbone
        class Better(type(backbone_for(DEIT.backbone()))):
            pass

        Better.family = family
        assert len(known) == before + 1
        assert backbone_for(DEIT.backbone()).family == family


def test_a_class_of_the_same_name_from_elsewhere_replaces_nothing(
    known: list[type[Backbone]],
) -> None:
    before = len(known)
    register_backbone(type("ViTBackbone", (NetworkBackbone,), {"family": "a namesake"}))
    assert len(known) == before + 1


@torch.no_grad()
def test_a_pruned_network_is_told_by_its_tensors() -> None:
    """As what prunes networks leaves it: other weights under attributes that say what was."""
    backbone, images = DEIT.backbone(), DEIT.images()
    backbone.cls_token = nn.Parameter(backbone.cls_token[..., :36])
    backbone.pos_embed = nn.Parameter(backbone.pos_embed[..., :36])
    convolution = backbone.patch_embed.proj
    convolution.weight = nn.Parameter(convolution.weight[:36])
    convolution.bias = nn.Parameter(convolution.bias[:36])
    for norm in [m for m in backbone.modules() if isinstance(m, nn.LayerNorm)]:
        norm.weight, norm.bias = nn.Parameter(norm.weight[:36]), nn.Parameter(norm.bias[:36])
        norm.normalized_shape = (36,)
    for block in backbone.blocks:
        block.attn.qkv.weight = nn.Parameter(block.attn.qkv.weight[:, :36])
        for layer, rows in ((block.attn.proj, 36), (block.mlp.fc1, 50), (block.mlp.fc2, 36)):
            layer.bias = nn.Parameter(layer.bias[:rows])
        block.attn.proj.weight = nn.Parameter(block.attn.proj.weight[:36])
        block.mlp.fc1.weight = nn.Parameter(block.mlp.fc1.weight[:50, :36])
        block.mlp.fc2.weight = nn.Parameter(block.mlp.fc2.weight[:36, :50])
    backbone.head.weight = nn.Parameter(backbone.head.weight[:, :36])
    model = sparsify(backbone, 1.0, method="dynamicvit").eval()
    assert (model.bound.width, model.num_features) == (36, 36)
    assert_agree(model(images), backbone(images))
    model.keep_ratio = 0.5
    decisions = DEIT.decisions()
    masked = model.forward_masked(images, decisions).logits
    assert_agree(model.forward_pruned(images, decisions).logits, masked)
    assert count_macs(model) < count_macs(DEIT.sparse(0.5))
    backbone.blocks[0].attn.num_heads = 5
    with pytest.raises(UnsupportedBackboneError, match="48 channels, which 5 heads"):
        sparsify(backbone, method="dynamicvit")
