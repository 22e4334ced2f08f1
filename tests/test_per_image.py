"""A budget per image: the mean that was asked for, and the answers of each image alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dynamicvit
from dynamicvit import DynamicViT, InputError, count_macs, sparsify
from dynamicvit.core.per_image import LEAST_IMAGES, STEPS
from families import BY_NAME, DEIT, Family, assert_agree, few_families

#: Of small networks on noise, whose counts are a few patches.
IMAGES = 96


def calibrated(family: Family = DEIT, cap: float | None = None, policy="merged") -> DynamicViT:
    model = family.sparse(policy=policy)
    model.calibrate(family.images(IMAGES), cap)
    return model


def mean_counts(model: DynamicViT, images: Tensor) -> list[float]:
    return [kept.sum(dim=1).float().mean().item() for kept in model.forward_pruned(images).kept]


@few_families
@pytest.mark.parametrize("policy", ["removed", "merged"])
@torch.no_grad()
def test_every_image_is_answered_as_alone_and_as_the_masked_path_does(
    family: Family, policy: str
) -> None:
    model, images = calibrated(family, policy=policy), family.images(6, seed=1)
    pruned = model.forward_pruned(images, full_map=True)
    assert len(pruned.kept[0].sum(dim=1).unique()) > 1
    assert_agree(model(images), pruned.logits)
    for image in range(len(images)):
        assert_agree(model(images[image : image + 1]), pruned.logits[image : image + 1])
    given = [kept.float() for kept in pruned.kept]
    assert_agree(model.forward_masked(images, given).logits, pruned.logits)
    again = model.forward_pruned(images, given, full_map=True)
    assert_agree(again.logits, pruned.logits)
    assert_agree(again.full_map, pruned.full_map)
    assert pruned.kept_index == ()
    for kept, scores, groups in zip(pruned.kept, pruned.keep_scores, pruned.groups, strict=True):
        assert (scores[kept] > float("-inf")).all()
        assert torch.equal(groups.amax(dim=1) + 1, kept.sum(dim=1))


@few_families
@pytest.mark.parametrize("policy", ["removed", "merged"])
@torch.no_grad()
def test_images_that_hold_as_many_run_together(
    family: Family, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they come from; when all do, as an even batch."""
    model, images = family.sparse(stages=(0, 1, 2), depth=3, policy=policy), family.images(4)
    counts = [(9, 9, 3), (8, 6, 3), (7, 6, 3), (6, 6, 3)]
    order = torch.arange(family.num_patches)
    given = [torch.stack([(order < each[stage]).float() for each in counts]) for stage in range(3)]
    packed, whole, run = [], [], type(model.bound).run_last
    monkeypatch.setattr(model.bound, "run_packed", _noting(packed, model.bound.run_packed))
    monkeypatch.setattr(
        model.bound, "run_last", lambda part: whole.append(part.images) or run(model.bound, part)
    )
    found = model.forward_pruned(images, given)
    assert [sorted(len(part.x) for part in parts) for parts in packed] == [[1, 1, 1, 1], [1, 3]]
    assert whole == [None]
    for image in range(4):
        alone = model.forward_pruned(
            images[image : image + 1], [each[image : image + 1] for each in given]
        )
        assert_agree(found.logits[image : image + 1], alone.logits)


def _noting(calls: list, run):
    return lambda i, parts: calls.append(parts) or run(i, parts)


@torch.no_grad()
def test_the_mean_is_the_schedules_at_any_ratio() -> None:
    model, images = calibrated(), DEIT.images(IMAGES)
    asked = model.schedule.kept(DEIT.num_patches)
    for mean, kept in zip(mean_counts(model, images), asked, strict=True):
        assert mean == pytest.approx(kept, rel=0.02)
    model.keep_ratio = 0.5
    assert mean_counts(model, images)[0] == pytest.approx(10, rel=0.02)
    model.keep_ratio = 1.0
    assert mean_counts(model, images) == [DEIT.num_patches] * 3


@torch.no_grad()
def test_at_least_one_token_and_at_most_the_cap() -> None:
    model, images = calibrated(cap=1.2), DEIT.images(IMAGES)
    asked = model.schedule.kept(DEIT.num_patches)
    for kept, mean in zip(model.forward_pruned(images).kept, asked, strict=True):
        assert kept.sum(dim=1).max() == int(1.2 * mean)
        assert kept.sum(dim=1).float().mean() == pytest.approx(mean, rel=0.02)
    model.keep_ratio = (0.1, 0.05, 0.05)
    assert min(kept.sum(dim=1).min() for kept in model.forward_pruned(images).kept) == 1


@torch.no_grad()
def test_counts_go_in_steps_of_large_grids() -> None:
    family = Family("large", "deit_tiny_patch16_224", grid=(8, 9))
    counts = calibrated(family).forward_pruned(family.images(8)).kept[0].sum(dim=1)
    step = 72 // STEPS
    assert step > 1
    assert len(counts.unique()) > 1
    assert not (counts % step).any()


def test_it_is_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    model, images = calibrated(cap=1.5), DEIT.images(4)
    model.save_pretrained(tmp_path / "model")
    loaded = dynamicvit.load(tmp_path / "model")
    assert loaded.per_image == model.per_image
    assert torch.equal(loaded(images), model(images))
    config = tmp_path / "model" / "config.json"
    said = json.loads(config.read_text())
    said["per_image"]["thresholds"][0].pop()
    config.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"thresholds .*63"):
        dynamicvit.load(tmp_path / "model")


def test_transformers_models_keep_it_too(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    family = BY_NAME["hf_vit"]
    model = sparsify(family.backbone(), 0.7, method="class-attention", per_image=True)
    model.dynamicvit.calibrate(family.images(LEAST_IMAGES))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.dynamicvit.per_image == model.dynamicvit.per_image
    images = family.images(4)
    torch.testing.assert_close(loaded(images).logits, model(images).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["evit", "tps", "diffrate"])
@torch.no_grad()
def test_methods_that_look_back_and_leave_something(method: str) -> None:
    images = DEIT.images(IMAGES)
    model = sparsify(DEIT.backbone(), 0.7, method=method, per_image=True).eval()
    assert isinstance(model, DynamicViT)
    model.calibrate(images.split(40))
    pruned = model.forward_pruned(images[:5])
    assert len(pruned.kept[0].sum(dim=1).unique()) > 1
    for image in range(5):
        assert_agree(model(images[image : image + 1]), pruned.logits[image : image + 1])


@pytest.mark.parametrize("method", ["lookahead", "tome", "mctf", "random", "static", "narrow"])
def test_methods_whose_scores_compare_no_images_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=method):
        sparsify(DEIT.backbone(), 0.7, method=method, per_image=True)
    if method != "narrow":
        with pytest.raises(InputError, match=method):
            sparsify(DEIT.backbone(), 0.7, method=method).calibrate(DEIT.images(IMAGES))


def test_what_can_not_be_is_one_line(tmp_path: Path) -> None:
    images = DEIT.images(LEAST_IMAGES)
    model = sparsify(DEIT.backbone(), 0.7, method="class-attention", per_image=True).eval()
    with pytest.raises(InputError, match=r"calibrate\(images\)"):
        model(images)
    with pytest.raises(InputError, match=rf"{LEAST_IMAGES} .* got 5"):
        model.calibrate(images[:5])
    with pytest.raises(InputError, match=r"0\.5"):
        model.calibrate(images, cap=0.5)
    with pytest.raises(InputError, match="70"):
        model.calibrate(torch.randn(LEAST_IMAGES, 3, 70, 80))
    model.calibrate(images)
    with pytest.raises(InputError, match="one image at a time"):
        model.forward_features(images)
    with pytest.raises(InputError, match="per_image = None"):
        dynamicvit.export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    model.policy = "merged"
    with pytest.raises(InputError, match=r"removed, not .* merged"):
        model(images)


def test_macs_are_those_of_the_mean_counts() -> None:
    model, fixed = calibrated(), DEIT.sparse(policy="merged")
    assert count_macs(model) == count_macs(fixed)
    model.per_image = None
    images = DEIT.images()
    assert torch.equal(model(images), fixed(images))
