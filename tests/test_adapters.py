"""Which adapter answers for a backbone, and families from outside the package."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dynamicvit import (
    DynamicViT,
    InputError,
    UnsupportedBackboneError,
    adapters,
    count_macs,
    schedule_macs,
    sparsify,
)
from dynamicvit.backbones import Adapter, Heads, adapter_for, register_adapter
from dynamicvit.backbones.layer_macs import convolution_macs, linear_macs
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


class NetworkAdapter(Adapter):
    """Only what a family must answer; all else is the contract's."""

    family: ClassVar[str] = "networks of this test"

    def claims(self, backbone: nn.Module) -> bool:
        return type(backbone) is Network

    def blocks(self, backbone: Any) -> nn.ModuleList:
        return backbone.blocks

    def width(self, backbone: Any) -> int:
        return 16

    def num_prefix_tokens(self, backbone: Any) -> int:
        return 1

    def image_size(self, backbone: Any) -> tuple[int, int]:
        return 16, 16

    def grid_size(self, backbone: Any, height: int, width: int) -> tuple[int, int]:
        if (height, width) != (16, 16):
            raise InputError(f"images of {height}x{width}, but this backbone takes 16x16")
        return 4, 4

    def embed(self, backbone: Any, images: Tensor) -> tuple[Tokens, None]:
        return Tokens(backbone.tokens(images), 1), None

    def attention_inputs(
        self, block: Any, depth: int, tokens: Tokens, position: None, queries: int | None = None
    ) -> Heads:
        attn = block.attention
        qkv = nn.functional.linear(block.norm(tokens.x), attn.in_proj_weight, attn.in_proj_bias)
        return Heads(*qkv.unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4))

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x + block.mlp(x)

    def finish(self, backbone: Any, x: Tensor) -> Tensor:
        return backbone.norm(x)

    def head(self, backbone: Any, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        return tokens.x[:, 0] if pre_logits else backbone.classify(tokens.x[:, 0])

    def classifier(self, backbone: Any) -> nn.Module:
        return backbone.classify


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> list[Adapter]:
    """The registered adapters, of which each test has its own list."""
    monkeypatch.setattr(adapters, "_ADAPTERS", [*adapters._ADAPTERS])
    return adapters._ADAPTERS


@pytest.fixture
def network() -> Network:
    register_adapter(NetworkAdapter())
    torch.manual_seed(0)
    return Network().eval()


@torch.no_grad()
def test_the_abstract_methods_are_enough(network: Network) -> None:
    images = torch.randn(3, 1, 16, 16)
    model = sparsify(network, 1.0).eval()
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
    model = sparsify(network, keep_ratio)
    assert schedule_macs(model, model.schedule) == count_macs(model)


def test_checkpointing_by_the_contracts_own_answer(network: Network) -> None:
    model, calls = sparsify(network), []
    network.blocks[0].norm.register_forward_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model.train()(torch.randn(2, 1, 16, 16)).logits.sum().backward()
    assert len(calls) == 2


def test_what_the_contract_refuses_until_a_family_answers(network: Network, tmp_path: Any) -> None:
    model = sparsify(network)
    with pytest.raises(InputError, match="networks of this test: the classifier can't be replaced"):
        model.reset_classifier(5)
    with pytest.raises(InputError, match="drop_path must be 0"):
        set_drop_path(model, 0.1)
    set_drop_path(model, 0.0)
    with pytest.raises(InputError, match="how to build this Network again"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="takes 16x16"):
        set_image_size(model, 32)
    assert set_image_size(model, 16) == (16, 16)


def test_a_family_is_unknown_until_it_is_registered(known: list[Adapter]) -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"Network is not supported.*timm Vision"):
        sparsify(Network())
    register_adapter(NetworkAdapter())
    assert isinstance(adapter_for(Network()), NetworkAdapter)
    with pytest.raises(UnsupportedBackboneError, match="families: networks of this test"):
        sparsify(nn.Linear(3, 3))


def test_registering_again_replaces(known: list[Adapter]) -> None:
    before = len(known)
    first, second = NetworkAdapter(), NetworkAdapter()
    register_adapter(first)
    register_adapter(second)
    assert len(known) == before + 1
    assert adapter_for(Network()) is second


def test_a_later_family_goes_first() -> None:
    class Better(type(adapter_for(DEIT.backbone()))):
        family = "better"

    register_adapter(Better())
    assert adapter_for(DEIT.backbone()).family == "better"


def test_a_class_of_the_same_name_from_elsewhere_replaces_nothing(known: list[Adapter]) -> None:
    class ViTAdapter(NetworkAdapter):
        family = "a namesake"

    ViTAdapter.__qualname__ = "ViTAdapter"
    before = len(known)
    register_adapter(ViTAdapter())
    assert len(known) == before + 1


def test_macs_of_layers() -> None:
    attention = nn.MultiheadAttention(16, 2)
    assert linear_macs(attention) == 4 * 16 * 16
    assert linear_macs(nn.MultiheadAttention(16, 2, kdim=8, vdim=4)) == 16 * (16 + 8 + 4 + 16)
    assert linear_macs(nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))) == 25
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 2, 2, "valid"))
    assert convolution_macs(stem, 16, 10) == 216 * 8 * 5 + 128 * 4 * 2
    assert convolution_macs(stem, 16, 10) == count_macs(stem, (16, 10))
