"""Tools that look into a dense network look into a DynamicViT: hooks, Grad-CAM, captum, offloading.

And profilers, and torch's older exporter to ONNX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dynamicvit import DynamicViT, sparsify
from dynamicvit.core.schedule import Policy
from families import BY_NAME, DEIT, Family, assert_agree, few_families, kinds_or_all


def watch(model: DynamicViT) -> list[Tensor]:
    """What each block gives, as its hook sees it, from now on."""
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(output))
    return seen


# ---------------------------------------------------------------- hooks


@few_families
@torch.no_grad()
def test_hooks_see_what_each_block_gives_where_tokens_merge(family: Family) -> None:
    assert_hooks_see(family, "merged")


@kinds_or_all
@torch.no_grad()
def test_hooks_see_what_each_block_gives(family: Family) -> None:
    assert_hooks_see(family, "removed")


def assert_hooks_see(family: Family, policy: Policy) -> None:
    """In either path, also where parts of a block are run; and they change nothing."""
    model, images, decisions = family.sparse(policy=policy), family.images(), family.decisions()
    pruned, masked = model(images), model.forward_masked(images, decisions).logits
    seen = watch(model)
    assert_agree(model(images), pruned)
    prefix = model.num_prefix_tokens
    counts = [family.num_patches, *model.schedule.kept(family.num_patches)]
    assert [each.shape[1] for each in seen] == [prefix + count for count in counts]
    last = model.forward_tokens(images)  # runs each block again
    assert_agree(model.bound.norm(seen[-1]), last.x)
    seen.clear()
    assert_agree(model.forward_masked(images, decisions).logits, masked)
    assert [len(each) for each in seen] == [len(images)] * model.depth
    seen.clear()
    model.forward_pruned(images, decisions)  # images hold different numbers of patches
    assert sum(len(each) for each in seen) == len(images) * model.depth


@few_families
@torch.no_grad()
def test_a_hook_may_change_what_a_block_gives(family: Family) -> None:
    for policy in ("removed", "merged"):
        model, images = family.sparse(policy=policy), family.images()
        before = model(images)
        handle = model.blocks[2].register_forward_hook(lambda *given: given[-1] * 2)
        assert not torch.allclose(model(images), before, atol=1e-3)
        handle.remove()
        assert torch.equal(model(images), before)


@torch.no_grad()
def test_the_backbones_hooks_see_what_the_model_gives() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    seen: list[Any] = []
    model.backbone.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    logits = model(images)
    assert len(seen) == 1
    assert torch.equal(seen[0][0], images)
    assert torch.equal(seen[0][1], logits)
    assert model.forward_masked(images) is seen[1][1]


def test_backward_hooks_see_each_block() -> None:
    model, images = DEIT.sparse(policy="merged").train(), DEIT.images()
    seen: list[int] = []
    for i, block in enumerate(model.blocks):
        block.register_full_backward_hook(lambda *_, i=i: seen.append(i))
    model(images).logits.sum().backward()
    assert sorted(seen) == [0, 1, 2, 3]


@torch.no_grad()
def test_attention_is_called_at_inference() -> None:
    for family in (DEIT, BY_NAME["eva02_split"]):
        for policy in ("removed", "merged"):
            model, called = family.sparse(policy=policy), []
            for i, block in enumerate(model.blocks):
                block.attn.register_forward_hook(lambda *_, i=i, to=called: to.append(i))
            model(family.images())
            assert called == [0, 1, 2, 3]


# ---------------------------------------------------------------- Grad-CAM and captum


def test_grad_cam_where_nothing_is_dropped_is_the_dense_networks() -> None:
    cam = pytest.importorskip("pytorch_grad_cam")
    model, images = DEIT.sparse(keep_ratio=[1.0, 1.0, 1.0]), DEIT.images()

    def heat(network: nn.Module) -> np.ndarray[Any, Any]:
        def on_the_grid(tokens: Tensor) -> Tensor:
            return tokens[:, 1:].unflatten(1, DEIT.grid).movedim(-1, 1)

        layers = [model.blocks[2].norm1, model.blocks[-1].norm1]
        with cam.GradCAM(network, layers, reshape_transform=on_the_grid) as explained:
            return explained(images, targets=None)

    np.testing.assert_allclose(heat(model), heat(model.backbone), atol=1e-4)


@pytest.mark.parametrize("policy", ["removed", "merged"])
def test_captum_explains_layers(policy: Policy) -> None:
    attr = pytest.importorskip("captum.attr")
    model, images = DEIT.sparse(policy=policy), DEIT.images()
    [tokens] = attr.LayerActivation(model, model.blocks[1]).attribute(images).unsqueeze(0)
    expected = watch(model)
    model(images)
    assert_agree(tokens, expected[1])
    model = DEIT.sparse(policy=policy)
    product = attr.LayerGradientXActivation(model, model.blocks[-1].norm1)
    given = product.attribute(images, target=3)
    inside: list[Tensor] = []
    model.blocks[-1].norm1.register_forward_hook(lambda _, x, y: inside.append(y))
    logits = model(images)
    slope = torch.autograd.grad(logits[:, 3].sum(), inside[0])[0]
    assert_agree(given, inside[0] * slope)
    grads = attr.LayerIntegratedGradients(model, model.blocks[0])
    assert grads.attribute(images, target=3, n_steps=2).shape == expected[0].shape


# ---------------------------------------------------------------- offloading


@pytest.mark.parametrize("policy", ["merged", pytest.param("removed", marks=pytest.mark.extended)])
@pytest.mark.parametrize("name", ["deit", "registers", "map_all", "eva02_split", "lvvit", "beit"])
@torch.no_grad()
def test_weights_may_be_elsewhere(name: str, policy: Policy) -> None:
    """accelerate brings each layer's weights when it is called."""
    family = BY_NAME[name]
    model, images, decisions = family.sparse(policy=policy), family.images(), family.decisions()
    pruned, masked = model(images), model.forward_masked(images, decisions).logits
    offload(model, whole=["Block"] if name == "beit" else None)
    assert_agree(model(images), pruned)
    assert_agree(model.forward_masked(images, decisions).logits, masked)
    assert all(value.is_meta for value in model.parameters())


@pytest.mark.parametrize("method", ["static", "evit", "tome", "mctf", "lookahead"])
@torch.no_grad()
def test_weights_of_other_methods_may_be_elsewhere(method: str) -> None:
    model, images = sparsify(DEIT.backbone(), 0.6, method=method).eval(), DEIT.images()
    expected = model(images)
    offload(model)
    assert_agree(model(images), expected)


def offload(model: DynamicViT, whole: list[str] | None = None) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, torch.device("cpu"), preload_module_classes=whole)


# ---------------------------------------------------------------- profilers and exporters


@torch.no_grad()
def test_a_profiler_sees_the_blocks() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    with profile(activities=[ProfilerActivity.CPU], with_stack=True) as seen:
        model(images)
    names = {event.name for event in seen.events()}
    assert {f"nn.Module: Block_{i}" for i in range(3)} <= names


@pytest.mark.filterwarnings("ignore")  # the exporter's own, of what it does to a trace
@pytest.mark.parametrize(
    ("method", "opset", "name"),
    [
        ("dynamicvit", 14, "deit"),
        ("lookahead", 18, "siglip"),
        pytest.param("tome", 18, "siglip", marks=pytest.mark.extended),
        pytest.param("mctf", 18, "deit", marks=pytest.mark.extended),
        pytest.param("lookahead", 14, "deit", marks=pytest.mark.extended),
    ],
)
@torch.no_grad()
def test_the_older_onnx_exporter(method: str, opset: int, name: str, tmp_path: Path) -> None:
    """Several tokens may become part of one, in one step."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    family, file = BY_NAME[name], tmp_path / "model.onnx"
    images = family.images(batch=3)
    if method == "dynamicvit":
        model = family.sparse(depth=2, stages=(0, 1), policy="merged")
    else:
        model = sparsify(family.backbone(depth=2), 0.6, method=method).eval()
    torch.onnx.export(
        model, (images,), file, dynamo=False, opset_version=opset, input_names=["images"]
    )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [given] = session.run(None, {"images": images.numpy()})
    assert_agree(torch.from_numpy(given), model(images), 1e-4)
