"""oneDNN's linear layers: the same numbers, only where they may, and back again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dynamicvit import InputError
from dynamicvit.layers import onednn
from dynamicvit.layers.onednn import OneDNNLinear, use_onednn
from families import BY_NAME, DEIT, assert_agree

needs_onednn = pytest.mark.skipif(not onednn._works(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that oneDNN was given."""
    seen: list[torch.Size] = []
    product = onednn._product

    def spy(x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape)
        return product(x, *rest)

    monkeypatch.setattr(onednn, "_product", spy)
    return seen


@needs_onednn
@pytest.mark.parametrize("name", ["deit", "eva02_split", "lvvit"])
@torch.no_grad()
def test_the_same_logits(name: str, calls: list) -> None:
    family = BY_NAME[name]
    model, images = family.sparse(), family.images()
    expected = model(images)
    layers = sum(type(module) is nn.Linear for module in model.modules())
    weights = list(model.state_dict())
    assert use_onednn(model) == layers
    calls.clear()
    assert_agree(model(images), expected)
    assert calls
    assert list(model.state_dict()) == weights
    assert use_onednn(model, enable=False) == layers
    assert torch.equal(model(images), expected)
    assert not any(isinstance(module, OneDNNLinear) for module in model.modules())


@needs_onednn
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:TF32:UserWarning")
def test_where_it_may_not(calls: list) -> None:
    """Gradients, other precisions, graphs for other runtimes, no rows at all."""
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    plain = copy.deepcopy(layer)
    use_onednn(layer)
    calls.clear()
    for one in (layer, plain):
        one.weight.requires_grad_(False)
        one(x).sum().backward()
    assert torch.equal(layer.bias.grad, plain.bias.grad)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
        assert layer(x[:0]).shape == (0, 4)
        program = torch.export.export(layer, (x,))
        assert "mkldnn" not in str(program.graph)
        torch.jit.trace(layer, x, check_trace=False)
        with torch.backends.mkldnn.flags(enabled=False):
            layer(x)
        assert not calls
        assert_agree(layer(x), plain(x))
        assert len(calls) == 1


@needs_onednn
def test_only_plain_layers() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Other(8, 8))
    assert use_onednn(model) == 1
    assert type(model[1]) is Other


@needs_onednn
@torch.no_grad()
def test_compilers_see_plain_layers(calls: list) -> None:
    """Theirs is the choice of a kernel; and they refuse this one unless weights are frozen."""
    model, images = DEIT.sparse(depth=1, stages=(0,)), DEIT.images()
    expected = model(images)
    use_onednn(model)
    calls.clear()
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(str(graph.graph))
        return graph

    assert_agree(torch.compile(model, backend=backend)(images), expected)
    assert graphs
    assert not any("mkldnn" in graph for graph in graphs)
    assert not calls


def test_a_pytorch_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(*_: object) -> None:
        raise AttributeError("mkldnn")

    monkeypatch.setattr(onednn, "_product", product)
    layer = nn.Linear(8, 4)
    with pytest.raises(InputError, match="can't run linear layers by oneDNN"):
        use_onednn(layer)
    assert type(layer) is nn.Linear
