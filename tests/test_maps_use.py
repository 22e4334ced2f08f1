"""ConvNeXt and Swin with cheap paths where models are used: saved, trained, exported, compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import timm
import torch

import dynamicvit
from dynamicvit import DynamicViT, InputError
from dynamicvit.budgets import keep_ratio_for
from dynamicvit.comparison.rows import candidate_named
from dynamicvit.core.teacher import dense_teacher, weigh_patches
from dynamicvit.costs import count_macs
from dynamicvit.data import Batch
from dynamicvit.methods import at_macs
from dynamicvit.runtimes import FORMATS, load_exported
from dynamicvit.training import fit, load_recipe
from dynamicvit.training.student import student_for
from exports import NEEDED, ignore_deprecations
from families import DEIT, NUM_CLASSES, assert_agree, or_all
from maps import BY_NAME, MAPS, MapFamily, few_maps
from pictures import noise_folders


class Memory:
    """Twelve images of a family in batches of four."""

    def __init__(self, family: MapFamily) -> None:
        self.family = family

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """The same in every epoch."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[Batch]:
        for seed in range(3):
            labels = torch.tensor([seed, 1, 2, 3]) % NUM_CLASSES
            yield Batch(self.family.images(4, seed), labels)


#: What a saved model must say of itself differs: the width and the kind of blocks, the size.
SAVED = ("convnext", "convnext_odd", "swin_any_size", "swinv2", "swin_s3")


@or_all([BY_NAME[name] for name in SAVED], MAPS)
@torch.no_grad()
def test_saved_and_loaded(family: MapFamily, tmp_path: Path) -> None:
    model, images = family.sparse([0.8, 0.6], [1, 3]), family.images()
    model.save_pretrained(tmp_path)
    again = dynamicvit.load(tmp_path)
    assert again.schedule == model.schedule
    assert again.bound.image_size == model.bound.image_size
    assert torch.equal(again(images), model(images))
    assert_agree(model.at([0.5, 0.5])(images), again.at([0.5, 0.5])(images))
    with pytest.raises(InputError, match=r"'merged'.*'cheap'"):
        dynamicvit.load(tmp_path, policy="merged")


@few_maps
@pytest.mark.parametrize("recipe", ["small_data", "convnext_tiny"])
def test_both_recipes_train_cheap_paths_and_modules(
    family: MapFamily, recipe: str, tmp_path: Path
) -> None:
    """The small-data recipe gathers in training, the paper's draws and weighs both paths."""
    length = ["images=24", "batch_size=4", "warmup=0", "augment.mixup_prob=0"]
    more = [] if recipe == "small_data" else ["drop_path=0", "backbone_frozen=0", "ema=null"]
    plan = load_recipe(recipe, [*length, *more])
    model, _ = student_for(family.backbone(), plan, None, None, False)
    assert model.policy == "cheap"
    before = {name: value.clone() for name, value in model.named_parameters()}
    report = fit(model, Memory(family), plan, tmp_path)
    assert report.bad_steps == 0
    after = dict(model.named_parameters())
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not [name for name in still if name.startswith("predictors.")]
    assert not [name for name in still if "blocks.4" in name and ".2." in name]


@few_maps
def test_what_a_position_is_worth_to_the_dense_network(family: MapFamily) -> None:
    """The size of the slope where it would lose its MLP; a teacher has no cheap paths."""
    model, images = family.sparse(), family.images()
    weighed = weigh_patches(dense_teacher(model), images)
    assert_agree(weighed.logits, model.backbone(images))
    assert weighed.importance is not None
    for importance in weighed.importance:
        assert importance.shape == (2, family.num_patches)
        assert (importance > 0).all()


@few_maps
def test_a_budget_gives_a_keep_ratio(family: MapFamily) -> None:
    dense = family.backbone(img_size=224) if "swin" in family.name else family.backbone()
    model = at_macs("dynamicvit", dense, 0.97)
    assert model.keep_ratio is not None
    assert model.keep_ratio > 0.4
    assert count_macs(model) <= 0.97 * count_macs(dense)
    with pytest.raises(InputError, match="too small"):
        keep_ratio_for(model, fraction=0.1)
    assert candidate_named("dynamicvit").over(dense).name == "dynamicvit-cheap"


def test_the_policy_on_the_command_line(
    tmp_path: Path, command: Callable[..., int], one_line: Callable[[], str]
) -> None:
    """Taken where it fits; elsewhere one line says which would."""
    model = BY_NAME["convnext"].sparse()
    model.bound.set_image_size(64, 96)
    model.save_pretrained(tmp_path / "whole")
    DEIT.sparse().save_pretrained(tmp_path / "tokens")
    photos = noise_folders(tmp_path / "photos", classes=1, each=2)
    words = ("predict", photos, "-o", tmp_path / "rows.csv", "--workers", 0)
    assert command(*words, "--model", tmp_path / "whole", "--policy", "cheap") == 0
    for name, policy, right in (("whole", "merged", "'cheap'"), ("tokens", "cheap", "'removed'")):
        assert command(*words, "--model", tmp_path / name, "--policy", policy) == 2
        line = one_line()
        assert f"{policy!r}" in line
        assert right in line


@cache
def least(name: str) -> DynamicViT:
    """One block, with a cheap path, to trace; tests must not change it."""
    model = BY_NAME[name].sparse(depths=(0, 0, 1, 0), stages=[0])
    model.bound.set_image_size(*BY_NAME[name].size)
    return model


@pytest.mark.extended
@pytest.mark.parametrize("of", ["convnext", "swin"])
def test_compiled(of: str) -> None:
    model, images = least(of), BY_NAME[of].images()
    with torch.no_grad():
        expected = model(images)
        assert_agree(torch.compile(model, backend="eager", fullgraph=True)(images), expected)


@pytest.mark.parametrize(
    ("of", "name", "size"),
    [
        ("swin", "torch", 2),
        pytest.param("convnext", "onnx", None, marks=pytest.mark.extended),
        pytest.param("swin", "openvino", None, marks=pytest.mark.extended),
    ],
)
@ignore_deprecations
@pytest.mark.usefixtures("traced_once")
@torch.no_grad()
def test_exported(of: str, name: str, size: int | None, tmp_path: Path) -> None:
    family = BY_NAME[of]
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    model = least(of)
    file = tmp_path / f"small{FORMATS[name].suffix}"
    dynamicvit.export(model, file, batch=size)
    loaded = load_exported(file)
    for batch in (1, 3):
        images = family.images(batch, seed=4)
        own, theirs = model.forward_pruned(images), loaded.forward_pruned(images)
        assert_agree(theirs.logits, own.logits, 1e-4)
        for mine, other in zip(own.kept, theirs.kept, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.extended
@ignore_deprecations
@pytest.mark.usefixtures("traced_once")
def test_int8(tmp_path: Path) -> None:
    """All that decides stays in float, and the file keeps what the model does, far beyond chance.

    Scores of random weights are close to each other: only trained ones pass export's own check.
    """
    for package in NEEDED["onnx"]:
        pytest.importorskip(package)
    model = least("convnext")
    noise = str(noise_folders(tmp_path / "images", classes=2, each=20))
    how = {"precision": "int8", "calibrate": noise, "calibration_images": 20, "least_agreement": 0}
    made = dynamicvit.export(model, tmp_path / "q.onnx", **how)
    assert made.agreement is not None
    assert made.agreement.answers >= 0.6
    shares = zip(made.agreement.kept, model.schedule.keep_ratios, strict=True)
    assert all(share > chance + 0.1 for share, chance in shares)
    assert made.in_float == {name for name in made.layers if name.startswith("predictors.")}
    assert any(name.endswith("2.blocks.0.mlp.fc1") for name in made.layers)


def test_levels_by_name_and_in_upernet() -> None:
    """timm's features_only, and a head for segmentation of transformers on top of it."""
    small = {"depths": (1, 1, 5, 1), "dims": (8, 16, 32, 64)}
    name, images = "dynamicvit_convnext_tiny", torch.randn(1, 3, 64, 96)
    getter = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3), **small)
    maps = getter.eval()(images)
    assert [each.shape[1] for each in maps] == getter.feature_info.channels() == [8, 16, 32, 64]
    assert [64 // each.shape[2] for each in maps] == getter.feature_info.reduction()
    transformers = pytest.importorskip("transformers")
    backbone = transformers.TimmBackboneConfig(
        backbone=name, out_indices=[0, 1, 2, 3], use_pretrained_backbone=False, features_only=True
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=5, hidden_size=32, use_auxiliary_head=False
    )
    network = transformers.UperNetForSemanticSegmentation(config).eval()
    assert any(isinstance(part, DynamicViT) for part in network.modules())
    with torch.no_grad():
        assert network(images).logits.shape == (1, 5, 64, 96)
