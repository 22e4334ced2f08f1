"""EoMT of transformers: patches are dropped before the blocks with queries, and back for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForUniversalSegmentation, EomtConfig, EomtForUniversalSegmentation
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor

from dynamicvit import InputError, count_macs, schedule_macs, sparsify
from dynamicvit.costs import DENSE
from dynamicvit.transformers import DynamicViTForUniversalSegmentation
from families import randomize

SIDE = 64


def eomt(masked: float = 0.0, **changes: Any) -> EomtForUniversalSegmentation:
    settings = dict(
        hidden_size=48, num_hidden_layers=6, num_attention_heads=3, image_size=SIDE, patch_size=16,
        num_blocks=2, num_queries=5, num_upscale_blocks=1, num_register_tokens=2, num_labels=4,
        mlp_ratio=2,
    )  # fmt: skip
    model = EomtForUniversalSegmentation(EomtConfig(**{**settings, **changes}))
    randomize(model, 1)
    model.attn_mask_probs.fill_(masked)
    return model.eval()


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def assert_same(found: Any, expected: Any) -> None:
    for name in ("class_queries_logits", "masks_queries_logits", "last_hidden_state"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [0.0, 1.0])
@pytest.mark.parametrize("swiglu", [False, True])
@torch.no_grad()
def test_where_nothing_is_dropped_it_is_the_original(masked: float, swiglu: bool) -> None:
    model = eomt(masked, use_swiglu_ffn=swiglu)
    expected = model(images())
    sparse = sparsify(model, 1.0, method="dynamicvit")
    assert isinstance(sparse, DynamicViTForUniversalSegmentation)
    found = sparse(images())
    assert type(found) is type(expected)
    assert_same(found, expected)


@pytest.mark.parametrize("policy", ["bypassed", "merged"])
@torch.no_grad()
def test_masked_and_pruned_agree(policy: str) -> None:
    sparse = sparsify(eomt(1.0), 0.6, (1, 2), policy, "dynamicvit")
    randomize(sparse.dynamicvit.predictors, 3)
    core = sparse.dynamicvit.eval()
    pruned = core.forward_pruned(images(), full_map=True)
    decisions = [kept.float() for kept in pruned.kept]
    masked = core.forward_masked(images(), decisions, full_map=True)
    assert any((kept.sum(1) < 16).all() for kept in pruned.kept)
    torch.testing.assert_close(masked.logits, pruned.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked.full_map, pruned.full_map, atol=1e-5, rtol=1e-5)
    assert pruned.logits.shape == (2, 4, 8, 8)
    assert not torch.allclose(pruned.logits, core.dense(images()), atol=1e-3)


@torch.no_grad()
def test_post_processing_is_transformers_own() -> None:
    sparse = sparsify(eomt(), 0.7)
    processor = EomtImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    output = sparse(images())
    size = {"shortest_edge": 8, "longest_edge": 8}
    maps = processor.post_process_semantic_segmentation(output, [(8, 8)] * 2, size)
    scores = sparse.dynamicvit(images())
    for found, own in zip(maps, scores.argmax(1), strict=True):
        assert np.array_equal(found, own)


def test_its_own_loss_trains_all_of_it() -> None:
    sparse = sparsify(eomt(), 0.6, method="dynamicvit").train()
    masks = [torch.zeros(2, 32, 32), torch.ones(1, 32, 32)]
    masks[0][0, :16], masks[0][1, 16:] = 1, 1
    classes = [torch.tensor([0, 2]), torch.tensor([1])]
    output = sparse(images(), mask_labels=masks, class_labels=classes)
    output.loss.backward()
    core = sparse.dynamicvit
    for weight in (
        core.predictors[0].mlp[0].weight,
        core.backbone.layers[0].mlp.fc1.weight,
        core.backbone.layers[-1].mlp.fc1.weight,
        core.backbone.query.weight,
    ):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0


def test_macs_count_the_blocks_with_queries() -> None:
    sparse = sparsify(eomt(), 0.5, method="tome")
    whole, fewer = schedule_macs(sparse, DENSE), count_macs(sparse)
    assert fewer < whole
    shallow = sparsify(eomt(num_blocks=1, num_hidden_layers=5), 0.5, method="tome")
    block = 12 * 48 * 48 * (16 + 3 + 5) * 8 // 12 + 2 * (16 + 3 + 5) ** 2 * 48
    assert schedule_macs(sparse, DENSE) - schedule_macs(shallow, DENSE) == pytest.approx(
        block, rel=0.05
    )


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    sparse = sparsify(eomt(1.0), 0.6, method="dynamicvit").eval()
    sparse.save_pretrained(tmp_path / "model")
    expected = sparse(images())
    for kind in (DynamicViTForUniversalSegmentation, AutoModelForUniversalSegmentation):
        again = kind.from_pretrained(tmp_path / "model").eval()
        assert again.dynamicvit.schedule == sparse.dynamicvit.schedule
        assert_same(again(images()), expected)


def test_what_can_not_be_is_said() -> None:
    sparse = sparsify(eomt(), 0.6)
    with pytest.raises(InputError, match="images of 32x32, but EoMT takes 64x64"):
        sparse(torch.randn(1, 3, 32, 32))
    with pytest.raises(InputError, match="removed"):
        sparsify(eomt(), 0.6, policy="removed", method="dynamicvit")
    assert sparsify(eomt(), 0.6, method="random").policy == "bypassed"
