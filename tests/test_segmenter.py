"""Segmentation models: heads on the full map, under the law that classifiers keep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dynamicvit
from dynamicvit import (
    DynamicViT,
    InputError,
    Segmenter,
    count_macs,
    load,
    post_process_semantic_segmentation,
    schedule_macs,
    segmenter,
    sparsify,
)
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.core.teacher import dense_teacher, weigh_patches
from dynamicvit.costs import DENSE
from families import DEIT, FAMILIES, KINDS, Family, few_families, or_all, randomize

CLASSES = 5


def made(family: Family = DEIT, head: str = "linear", **kwargs: object) -> Segmenter:
    """A sparse one with random weights everywhere."""
    model = segmenter(family.sparse(**kwargs), CLASSES, head)  # type: ignore[arg-type]
    randomize(model.decode_head, 7)
    return model.eval()


@few_families
@pytest.mark.parametrize("policy", ["removed", "merged"])
def test_masked_and_pruned_maps_agree(family: Family, policy: str) -> None:
    model, images = made(family, policy=policy), family.images()
    decisions = family.decisions()
    with torch.no_grad():
        masked = model.forward_masked(images, decisions)
        pruned = model.forward_pruned(images, decisions)
    assert masked.logits.shape == (2, CLASSES, *family.grid)
    torch.testing.assert_close(masked.logits, pruned.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mask"])
def test_the_model_is_the_pruned_path_and_the_head_on_the_full_map(head: str) -> None:
    model, images = made(head=head), DEIT.images()
    with torch.no_grad():
        output = model.forward_pruned(images)
        assert output.full_map is not None
        assert torch.equal(model(images), output.logits)
        assert torch.equal(model.decode_head(output.full_map), output.logits)
        head_first = model.forward_head(model.forward_tokens(images))
        assert torch.equal(head_first, output.logits)
        assert torch.equal(model.forward_dense(images).logits, DenseNetwork(model)(images))
        model.keep_ratio = 1.0
        torch.testing.assert_close(model(images), model.dense(images))


def test_a_linear_head_is_a_layer_on_every_patch() -> None:
    model, images = made(), DEIT.images()
    with torch.no_grad():
        patches = model.bound.module.forward_features(images)[:, model.num_prefix_tokens :]
        expected = patches @ model.decode_head.linear.weight.T + model.decode_head.linear.bias
    expected = expected.transpose(1, 2).unflatten(2, DEIT.grid)
    torch.testing.assert_close(model.dense(images), expected)


def test_the_mask_transformer_has_segmenters_form() -> None:
    """Of Section 3.2: scalar products of normalized patches and classes, normed over classes."""
    head = made(head="mask").decode_head
    full_map = torch.randn(2, *DEIT.grid, 48)
    with torch.no_grad():
        x = torch.cat(
            [head.project(full_map.flatten(1, 2)), head.class_embedding.expand(2, -1, -1)], 1
        )
        for block in head.blocks:
            x = block(x)
        x = head.norm(x)
        patches, classes = x[:, :-CLASSES], x[:, -CLASSES:]
        products = torch.einsum(
            "bnc,bkc->bnk",
            F.normalize(head.patch_projection(patches), dim=-1),
            F.normalize(head.class_projection(classes), dim=-1),
        )
        expected = F.layer_norm(products, (CLASSES,), head.mask_norm.weight, head.mask_norm.bias)
        assert torch.allclose(head(full_map).flatten(2).transpose(1, 2), expected, atol=1e-6)


def test_gradients_reach_head_backbone_and_prediction_modules() -> None:
    model = made().train()
    output = model.forward_masked(DEIT.images())
    output.logits.square().mean().backward()
    for part in (model.decode_head.linear.weight, model.blocks[0].attn.qkv.weight):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0
    assert all(module.mlp[0].weight.grad.abs().sum() > 0 for module in model.predictors)


def test_a_dense_one_becomes_sparse_and_back() -> None:
    dense = segmenter(DEIT.backbone(), CLASSES)
    randomize(dense.decode_head, 3)
    dense.set_class_names(list("abcde"))
    images = DEIT.images()
    sparse = sparsify(dense, 0.5, method="tome")
    assert isinstance(sparse, Segmenter)
    assert sparse.decode_head is dense.decode_head
    assert sparse.labels == dense.labels
    assert torch.equal(sparse.eval().dense(images), dense.eval()(images))
    assert count_macs(sparse) < count_macs(dense)
    with pytest.raises(InputError, match="keep_ratio"):
        sparsify(sparse)
    with pytest.raises(InputError, match="narrow"):
        sparsify(dense, method="narrow")


@pytest.mark.parametrize("head", ["linear", "mask"])
def test_macs_count_the_head(head: str) -> None:
    model = made(head=head)
    whole = count_macs(model)
    assert whole == schedule_macs(model, model.schedule)
    counted = count_macs(
        sparsify(
            DEIT.backbone(num_classes=0),
            model.keep_ratios,
            model.schedule.stages,
            "removed",
            "dynamicvit",
        )
    )
    n, c, k = DEIT.num_patches, 48, CLASSES
    if head == "linear":
        assert whole - counted == n * c * k
    else:
        blocks = 2 * (12 * (n + k) * c * c + 2 * (n + k) ** 2 * c)
        assert whole - counted == blocks + 2 * n * c * c + k * c * c + n * c * k


@pytest.mark.parametrize("head", ["linear", "mask"])
def test_saved_and_loaded_it_is_the_same(head: str, tmp_path: Path) -> None:
    model, images = made(head=head, policy="merged"), DEIT.images()
    model.set_class_names(list("abcde"))
    model.save_pretrained(tmp_path / "model")
    for again in (
        load(tmp_path / "model"),
        Segmenter.from_pretrained(tmp_path / "model"),
        DynamicViT.from_pretrained(tmp_path / "model"),
    ):
        assert type(again) is Segmenter
        assert again.labels == model.labels
        assert again.pretrained_cfg["label_names"] == list("abcde")
        assert torch.equal(again(images), model(images))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "image-segmentation" in card


@or_all(KINDS, [family for family in FAMILIES if family.frames is None])
def test_every_family_is_saved_with_a_head(family: Family, tmp_path: Path) -> None:
    model, images = made(family), family.images()
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model")(images), model(images))


def test_a_classifier_is_no_segmenter(tmp_path: Path) -> None:
    DEIT.sparse().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"classification.*segmentation"):
        Segmenter.from_pretrained(tmp_path / "model")


def test_budgets_of_its_own_for_each_image_and_for_a_view() -> None:
    model, images = made(), torch.randn(6, 3, *DEIT.size)
    with torch.no_grad():
        half = model.at(0.5)(images)
        before = model.keep_ratio
        model.keep_ratio = 0.5
        assert torch.equal(model(images), half)
        model.keep_ratio = before
        model.calibrate(torch.randn(64, 3, *DEIT.size))
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        kept = model.forward_pruned(images).kept[0].sum(1)
    assert len(kept.unique()) > 1
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_another_image_size_interpolates_positions() -> None:
    model = made()
    rows, columns = DEIT.grid[0] + 2, DEIT.grid[1] - 1
    dynamicvit.checkpoints.loading.set_image_size(model, (16 * rows, 16 * columns))
    assert model(torch.randn(1, 3, 16 * rows, 16 * columns)).shape[2:] == (rows, columns)


def test_what_a_patch_is_worth_is_known_of_a_map_too() -> None:
    model, images = made(), DEIT.images()
    teacher = dense_teacher(model)
    assert isinstance(teacher, Segmenter)
    assert teacher.decode_head is not model.decode_head
    output = weigh_patches(teacher, images)
    assert output.importance is not None
    assert all(stage.shape == (2, DEIT.num_patches) and stage.any() for stage in output.importance)


def test_another_head_is_fresh_and_nameless() -> None:
    model = made()
    model.set_class_names(list("abcde"))
    assert isinstance(model.get_classifier(), nn.Linear)
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.labels.class_names is None
    assert model(DEIT.images()).shape[1] == 3


def test_maps_of_any_size() -> None:
    logits = torch.randn(2, 3, 4, 5)
    assert torch.equal(torch.stack(post_process_semantic_segmentation(logits)), logits.argmax(1))
    maps = post_process_semantic_segmentation(logits, [(8, 10), (3, 3)])
    assert [tuple(one.shape) for one in maps] == [(8, 10), (3, 3)]
    wide = F.interpolate(logits[:1], (8, 10), mode="bilinear").argmax(1)[0]
    assert torch.equal(maps[0], wide)
    with pytest.raises(InputError, match="1 target sizes for 2"):
        post_process_semantic_segmentation(logits, [(8, 10)])


def test_what_can_not_be_is_said() -> None:
    with pytest.raises(InputError, match="linear, mask, got 'cubic'"):
        segmenter(DEIT.backbone(), 3, "cubic")
    with pytest.raises(InputError, match="at least 1 class, got 0"):
        segmenter(DEIT.backbone(), 0)
    with pytest.raises(InputError, match="forward_tokens"):
        made().forward_head(torch.zeros(1, 3, 48))


def test_dense_macs_are_without_stages() -> None:
    dense = segmenter(DEIT.backbone(), CLASSES)
    assert schedule_macs(dense, DENSE) == count_macs(dense)
