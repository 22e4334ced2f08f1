"""Models of Hugging Face transformers: what they give, keep, save, and are used with."""

from __future__ import annotations

import copy
import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynamicvit import (
    DynamicViT,
    InputError,
    Schedule,
    UnsupportedBackboneError,
    backbones,
    count_macs,
    keep_ratio_for,
    load,
    sparsify,
)
from dynamicvit.checkpoints.loading import set_drop_path, set_image_size
from dynamicvit.core.losses import LossWeights, dynamicvit_loss
from dynamicvit.core.schedule import Policy
from dynamicvit.core.teacher import weigh_patches
from dynamicvit.data import eval_transform
from families import HF_FAMILIES, NUM_CLASSES, HFFamily, assert_agree, randomize

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.modeling_outputs import ImageClassifierOutput  # noqa: E402

from dynamicvit.backbones.hf_base import OLDEST, HFBackbone, require  # noqa: E402
from dynamicvit.transformers import DynamicViTConfig, DynamicViTForImageClassification  # noqa: E402
from dynamicvit.transformers.model import UnlabeledWarning  # noqa: E402

BY_NAME = {family.name: family for family in HF_FAMILIES}
VIT = BY_NAME["hf_vit"]
LABELS = {index: f"thing {index}" for index in range(NUM_CLASSES)}

each_hf_family = pytest.mark.parametrize("family", HF_FAMILIES, ids=lambda family: family.name)


def sparse(
    family: HFFamily = VIT, keep_ratio: float = 0.6, policy: Policy = "removed", **kwargs: Any
) -> Any:
    """A transformers model with prediction modules that tell patches apart, in eval mode."""
    model = sparsify(family.backbone(**kwargs), keep_ratio, policy=policy, method="dynamicvit")
    randomize(model.dynamicvit.predictors, 1)
    return model


def interpolated(family: HFFamily) -> dict[str, bool]:
    return {"interpolate_pos_encoding": True} if family.native else {}


# ---------------------------------------------------------------- what sparsify gives


@each_hf_family
@torch.no_grad()
def test_it_gives_what_the_dense_model_gives(family: HFFamily) -> None:
    backbone, images = family.backbone(), family.images()
    model = sparsify(backbone, 1.0, method="dynamicvit")
    assert isinstance(model, DynamicViTForImageClassification)
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model.dynamicvit, DynamicViT)
    assert model.dynamicvit.backbone is backbone
    assert not model.training, "as the dense model was"
    assert sparsify(family.backbone().train(), method="dynamicvit").training
    output = model(images, **interpolated(family))
    assert isinstance(output, ImageClassifierOutput)
    assert_agree(output.logits, family.dense(backbone, images))
    assert output.loss is None
    with pytest.raises(InputError, match="DynamicViT already"):
        sparsify(model, method="dynamicvit")


@torch.no_grad()
def test_the_budget_and_what_is_kept() -> None:
    model, images = sparse(), VIT.images()
    report = model.forward_pruned(images)
    assert torch.equal(report.logits, model(images).logits)
    assert report.kept[-1].sum(dim=1).tolist() == [4, 4]  # 0.6³ of 20
    assert model.keep_ratio == 0.6
    model.keep_ratio = 0.3
    assert model.dynamicvit.keep_ratio == model.keep_ratio == 0.3
    assert model.config.keep_ratios == list(model.dynamicvit.schedule.keep_ratios)
    assert model.forward_pruned(images).kept[0].sum(dim=1).tolist() == [6, 6]


@torch.no_grad()
def test_around_a_trained_model() -> None:
    core, images = DynamicViT(VIT.backbone(), Schedule((1, 2), (0.7, 0.4))).eval(), VIT.images()
    randomize(core.predictors)
    before = core(images)
    model = DynamicViTForImageClassification.around(core)
    assert model.dynamicvit is core
    assert torch.equal(model(images).logits, before)
    assert model.config.backbone_config is core.backbone.config


@torch.no_grad()
def test_copies_are_independent() -> None:
    model, images = sparse(id2label=LABELS), VIT.images()
    expected = model(images).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images).logits, expected)
        assert other.config.backbone_config is other.dynamicvit.backbone.config
        other.config.num_labels = 2
        other.keep_ratio = 0.3
    assert (model.config.num_labels, model.keep_ratio) == (NUM_CLASSES, 0.6)


def test_its_patch_embedding() -> None:
    model = sparse()
    assert model.get_input_embeddings() is model.dynamicvit.backbone.get_input_embeddings()


@torch.no_grad()
def test_tuples() -> None:
    model, images, labels = sparse(), VIT.images(), torch.tensor([0, 1])
    output = model(images, labels=labels)
    loss, logits = model(images, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    model.config.return_dict = False
    (logits,) = model(images)
    assert torch.equal(logits, output.logits)


def test_what_it_can_not_give() -> None:
    model, images = sparse(), VIT.images()
    with pytest.raises(InputError, match=r"output_attentions .*forward_pruned"):
        model(images, output_attentions=True)
    with pytest.raises(InputError, match=r"output_attentions .*forward_pruned"):
        model(images, output_hidden_states=True)
    with pytest.raises(InputError, match="pixel_values must be given"):
        model(labels=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="images must be"):
        model(images[0])


@torch.no_grad()
def test_images_are_taken_in_any_precision() -> None:
    model, images = sparse().bfloat16(), VIT.images()
    assert model(images).logits.dtype == torch.bfloat16
    exact = sparse(keep_ratio=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_agree(exact(images).logits.float(), exact(images).logits.float())


def test_macs() -> None:
    model = sparse()
    assert count_macs(model) == count_macs(model.dynamicvit)
    assert keep_ratio_for(model, fraction=0.8) == keep_ratio_for(model.dynamicvit, fraction=0.8)


# ---------------------------------------------------------------- image sizes


@pytest.mark.parametrize("name", ["hf_deit", "hf_siglip"])
@torch.no_grad()
def test_other_sizes_are_taken_when_asked(name: str) -> None:
    family = BY_NAME[name]
    model, images = sparsify(family.backbone(), 1.0, method="dynamicvit"), family.images()
    with pytest.raises(InputError, match=r"64x80, but this model takes 48x48 .*interpolate_pos"):
        model(images)
    with pytest.raises(InputError, match="interpolate_pos"):
        model.forward_pruned(images)
    logits = model(images, interpolate_pos_encoding=True).logits
    assert_agree(logits, family.dense(model.dynamicvit.backbone, images))
    own = torch.randn(2, 3, 48, 48)
    assert_agree(model(own).logits, model.dynamicvit.backbone(own).logits)
    odd = torch.randn(2, 3, 50, 70)  # what is left of the last patch is not seen
    dense = model.dynamicvit.backbone(odd, interpolate_pos_encoding=True).logits
    assert_agree(model(odd, interpolate_pos_encoding=True).logits, dense)


def test_sizes_that_can_not_be() -> None:
    backbone = VIT.backbone()
    model = sparsify(backbone, method="dynamicvit")
    with pytest.raises(InputError, match=r"32x80, but this backbone takes 64x80 .*square"):
        model(torch.randn(1, 3, 32, 80), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="at least 16x16"):
        model(torch.randn(1, 3, 8, 80), interpolate_pos_encoding=True)
    assert set_image_size(model, None) == (64, 80)
    with pytest.raises(InputError, match="32x32"):
        set_image_size(model, 32)


# ---------------------------------------------------------------- losses


def drawn(model: Any, images: Tensor) -> Any:
    """What the masked path gives with the decisions of :func:`trained`."""
    torch.manual_seed(0)
    return model.train().dynamicvit.forward_masked(images)


def trained(model: Any, images: Tensor, labels: Tensor | None = None) -> Any:
    torch.manual_seed(0)
    return model.train()(images, labels=labels)


def test_in_training_the_loss_is_the_papers() -> None:
    model, images, labels = sparse(), VIT.images(), torch.tensor([1, 5])
    output, ratios = drawn(model, images), model.dynamicvit.schedule.keep_ratios
    alone = LossWeights(distillation=0, token=0)
    expected = dynamicvit_loss(output, ratios, labels=labels, weights=alone).total
    given = trained(model, images, labels)
    assert_agree(given.loss, expected)
    assert torch.equal(given.logits, output.logits)
    with pytest.warns(UnlabeledWarning, match="TrainerMixin"):
        unlabeled = trained(model, images)
    assert unlabeled.loss is None
    expected = dynamicvit_loss(output, ratios, weights=replace(alone, classification=0)).total
    assert torch.equal(unlabeled.sparsity_loss, expected)

    teacher = VIT.backbone(seed=7)
    model.distil_from(teacher)
    assert all(parameter.requires_grad for parameter in teacher.parameters()), "a copy is frozen"
    dense = weigh_patches(sparsify(teacher, method="dynamicvit").dynamicvit, images)
    expected = dynamicvit_loss(output, ratios, labels=labels, teacher=dense).total
    assert_agree(trained(model, images, labels).loss, expected)
    model.loss_weights = LossWeights(classification=0)
    expected = dynamicvit_loss(output, ratios, teacher=dense, weights=model.loss_weights).total
    assert_agree(trained(model, images).loss, expected)
    model.loss_weights = LossWeights(classification=2.0, guidance=3.0)
    expected = dynamicvit_loss(
        output, ratios, labels=labels, teacher=dense, weights=model.loss_weights
    ).total
    assert_agree(trained(model, images, labels).loss, expected)


def test_a_loss_trains_the_whole_model_and_not_its_teacher() -> None:
    torch.manual_seed(0)
    model, images = sparse().train(), VIT.images()
    model.distil_from()
    teacher = model._teacher[0]
    assert teacher.backbone is not model.dynamicvit.backbone
    model(images, labels=torch.tensor([1, 5])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any("teacher" in name for name in model.state_dict())
    model.train()
    assert not teacher.training


def test_a_teacher_follows_the_students_precision() -> None:
    model = sparse().train()
    model.distil_from()
    model.bfloat16()  # which does not reach the teacher
    assert model(VIT.images(), labels=torch.tensor([1, 5])).loss.isfinite()


@torch.no_grad()
def test_in_evaluation_the_loss_is_the_tasks() -> None:
    model, images, labels = sparse(), VIT.images(), torch.tensor([1, 5])
    output = model(images, labels=labels)
    assert_agree(output.loss, nn.functional.cross_entropy(output.logits, labels))
    model.distil_from()
    assert torch.equal(model(images, labels=labels).loss, output.loss)


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        ("regression", torch.randn(2, NUM_CLASSES), nn.MSELoss()),
        ("multi_label_classification", torch.rand(2, NUM_CLASSES), nn.BCEWithLogitsLoss()),
    ],
)
def test_other_problems(problem: str, labels: Tensor, loss: Callable[..., Tensor]) -> None:
    model, images = sparse(problem_type=problem), VIT.images()
    output = model(images, labels=labels)
    assert_agree(output.loss, loss(output.logits, labels))
    masked = drawn(model, images)
    rest = LossWeights(classification=0, distillation=0, token=0)
    rest = dynamicvit_loss(masked, model.dynamicvit.schedule.keep_ratios, weights=rest).total
    assert_agree(trained(model, images, labels).loss, loss(masked.logits, labels) + rest)
    model.distil_from()
    with pytest.raises(InputError, match=f"'{problem}', but distillation"):
        model(images, labels=labels)
    model.loss_weights = LossWeights(distillation=0)
    assert model(images, labels=labels).loss.isfinite()


def test_teachers_that_do_not_fit() -> None:
    model = sparse()
    with pytest.raises(InputError, match=r"the teacher has 96 features, .* 48"):
        model.distil_from(VIT.backbone(hidden_size=96))
    with pytest.raises(UnsupportedBackboneError, match="Linear"):
        model.distil_from(nn.Linear(3, 3))
    other = VIT.backbone()
    sparsify(other, method="dynamicvit").dynamicvit.reset_classifier(3)
    with pytest.raises(InputError, match=r"the teacher has 3 classes, .* 7"):
        model.distil_from(other)
    with pytest.raises(InputError, match=r"the teacher has \(8, 10\) patches, .*\(4, 5\)"):
        model.distil_from(VIT.backbone(patch_size=8))
    with pytest.raises(InputError, match="images of 64x80, but"):
        model.distil_from(VIT.backbone(image_size=[48, 64]))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("hf_vit", "hidden_dropout_prob"),
        ("hf_vit", "attention_probs_dropout_prob"),
        ("hf_dinov2", "drop_path_rate"),
        ("hf_dinov2", "attention_probs_dropout_prob"),
        ("hf_siglip", "attention_dropout"),
    ],
)
@torch.no_grad()
def test_dropout_in_training_is_the_dense_models(name: str, rate: str) -> None:
    family = BY_NAME[name]
    core, images = family.sparse(**{rate: 0.5}), family.images()
    calm = core.forward_dense(images).logits
    core.train()
    torch.manual_seed(0)
    ours = core.forward_dense(images).logits
    torch.manual_seed(0)
    assert_agree(ours, family.dense(core.backbone, images))
    assert (ours - calm).abs().max() > 1e-3
    noisy = [core.forward_masked(images, family.decisions()).logits for _ in range(2)]
    assert (noisy[0] - noisy[1]).abs().max() > 1e-3


@torch.no_grad()
def test_drop_path() -> None:
    core, images = BY_NAME["hf_dinov2"].sparse(), BY_NAME["hf_dinov2"].images()
    set_drop_path(core, 0.8)
    noisy = [core.train().forward_dense(images).logits for _ in range(2)]
    assert (noisy[0] - noisy[1]).abs().max() > 1e-3
    set_drop_path(core, 0.0)
    noisy = [core.forward_dense(images).logits for _ in range(2)]
    assert torch.equal(*noisy)
    with pytest.raises(InputError, match="drop_path must be 0"):
        set_drop_path(VIT.sparse(), 0.1)
    set_drop_path(VIT.sparse(), 0.0)


@each_hf_family
def test_activation_checkpointing_by_transformers_means(family: HFFamily) -> None:
    model, images = sparse(family).train(), family.images()
    model.loss_weights = LossWeights(classification=0)
    calls: list[int] = []
    for block in model.dynamicvit.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")()
    model(images, **interpolated(family)).logits.sum().backward()
    assert len(calls) == 8
    calls.clear()
    getattr(model, f"{name}_checkpointing_disable")()
    model(images, **interpolated(family)).logits.sum().backward()
    assert len(calls) == 4
    calls.clear()
    model.dynamicvit.set_grad_checkpointing()
    family.dense(model.dynamicvit.backbone, images).sum().backward()
    assert len(calls) == 8, "of the dense network too"


class Scenes(torch.utils.data.Dataset[dict[str, Any]]):
    """Noise whose brightness is its class."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.randn(3, *VIT.size, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": noise + index % NUM_CLASSES, "labels": index % NUM_CLASSES}


def trainer(model: nn.Module, folder: Path, steps: int) -> Any:
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return transformers.Trainer(model, arguments, train_dataset=Scenes(), eval_dataset=Scenes())


def test_trainer_trains_evaluates_saves_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    model = sparse()
    model.distil_from()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = trainer(model, tmp_path / "run", steps=4)
    first.train()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[1] for name in changed} == {"backbone", "predictors"}
    with torch.no_grad():
        batch = [Scenes()[index] for index in range(8)]
        images = torch.stack([scene["pixel_values"] for scene in batch])
        labels = torch.tensor([scene["labels"] for scene in batch])
        expected = model.eval()(images, labels=labels).loss.item()
    assert first.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    first.save_model(str(tmp_path / "final"))

    best = Path(first.state.best_model_checkpoint)
    for name, value in load_file(best / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), "the best model was taken up again"

    resumed = sparse(seed=5)
    second = trainer(resumed, tmp_path / "run", steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert second.state.global_step == 4
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


# ---------------------------------------------------------------- the config


@each_hf_family
def test_every_key_of_the_backbones_config_reads_the_same(family: HFFamily) -> None:
    backbone = family.backbone(problem_type="single_label_classification").config
    config = DynamicViTConfig(backbone, (0.7, 0.5), (1, 2))
    for key in backbone.to_dict():
        if key not in ("model_type", "architectures", "transformers_version"):
            assert getattr(config, key) == getattr(backbone, key), key
    assert config.num_labels == NUM_CLASSES
    assert (config.keep_ratios, config.stages) == ([0.7, 0.5], [1, 2])
    assert config.model_type == "dynamicvit"
    with pytest.raises(AttributeError, match="no_such_key"):
        _ = config.no_such_key


def test_keys_are_stored_once() -> None:
    backbone = VIT.backbone().config
    config = DynamicViTConfig(backbone)
    config.id2label = LABELS
    config.image_size = 32
    config.problem_type = "regression"
    assert (backbone.id2label, backbone.image_size) == (LABELS, 32)
    backbone.num_labels = 3
    assert config.num_labels == 3
    config.num_labels = 4
    assert len(backbone.id2label) == len(backbone.label2id) == 4
    config.keep_ratios, config.stages = [0.5], [1]
    config.something = "else"
    assert not hasattr(backbone, "keep_ratios")
    assert not hasattr(backbone, "something")
    written = json.loads(config.to_json_string())
    assert written["backbone_config"]["problem_type"] == "regression"
    assert not {"id2label", "label2id", "problem_type", "image_size"} & written.keys()
    assert DynamicViTConfig(**written).to_dict() == config.to_dict()


def test_configs_by_their_words() -> None:
    assert DynamicViTConfig().backbone_config.model_type == "vit"
    config = DynamicViTConfig({"model_type": "dinov2", "hidden_size": 48}, id2label=LABELS)
    assert config.hidden_size == 48
    assert config.num_labels == NUM_CLASSES
    assert transformers.AutoConfig.for_model("dynamicvit", num_labels=3).num_labels == 3
    with pytest.raises(InputError, match="keep ratio"):
        DynamicViTConfig(keep_ratios=(1.5,), stages=(1,))


# ---------------------------------------------------------------- saving and loading


@each_hf_family
@torch.no_grad()
def test_round_trip(family: HFFamily, tmp_path: Path) -> None:
    model, images = sparse(family, id2label=LABELS), family.images()
    model.dynamicvit.keep_ratio = [0.9, 0.5, 0.2]  # past the wrapper, and saved all the same
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    expected = model(images, **interpolated(family)).logits
    for loader in (transformers.AutoModelForImageClassification, DynamicViTForImageClassification):
        again = loader.from_pretrained(tmp_path)
        assert type(again) is DynamicViTForImageClassification
        assert not again.training
        assert again.config.to_dict() == {**model.config.to_dict(), **_noted(again)}
        assert again.dynamicvit.schedule == model.dynamicvit.schedule
        assert torch.equal(again(images, **interpolated(family)).logits, expected)
    half = DynamicViTForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert type(transformers.AutoConfig.from_pretrained(tmp_path)) is DynamicViTConfig


@torch.no_grad()
def test_what_becomes_of_dropped_tokens_is_kept(tmp_path: Path) -> None:
    """By a new budget, in the folder, and by every command; older folders drop."""
    assert sparse(policy="merged").config.policy == "merged"
    model, images = sparse(), VIT.images()
    model.policy = "merged"
    assert model.config.policy == model.policy == "merged"
    model.keep_ratio = 0.3
    assert (model.config.policy, model.dynamicvit.schedule.policy) == ("merged", "merged")
    assert DynamicViTForImageClassification.around(model.dynamicvit).config.policy == "merged"
    model.save_pretrained(tmp_path)
    expected = model(images).logits
    again = DynamicViTForImageClassification.from_pretrained(tmp_path)
    assert again.dynamicvit.schedule == model.dynamicvit.schedule
    assert torch.equal(again(images).logits, expected)
    assert torch.equal(load(tmp_path)(images), expected)
    with pytest.raises(InputError, match=r"'removed', 'merged'.* got 'left'"):
        DynamicViTConfig(policy="left")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("policy") == "merged"
    for words in ({}, {"dropped": "gone"}):  # before there was a choice, and of 0.1.0
        (tmp_path / "config.json").write_text(json.dumps(config | words))
        old = DynamicViTForImageClassification.from_pretrained(tmp_path)
        assert old.dynamicvit.schedule.policy == old.config.policy == "removed"
        assert not torch.equal(old(images).logits, expected)
    (tmp_path / "config.json").write_text(json.dumps(config | {"dropped": "merged"}))  # by 0.1.0
    old = DynamicViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(old(images).logits, expected)
    assert "dropped" not in old.config.to_dict()


def _noted(model: Any) -> dict[str, Any]:
    """What transformers writes into configs when it saves and loads."""
    keys = ("architectures", "dtype", "_name_or_path", "backbone_config")
    return {key: model.config.to_dict().get(key) for key in keys}


def test_other_classes(tmp_path: Path) -> None:
    sparse().save_pretrained(tmp_path)
    model = DynamicViTForImageClassification.from_pretrained(
        tmp_path, num_labels=3, ignore_mismatched_sizes=True
    )
    assert model.dynamicvit.num_classes == model.config.num_labels == 3
    saved = load_file(tmp_path / "model.safetensors")
    for name, value in model.dynamicvit.predictors.state_dict().items():
        assert torch.equal(value, saved[f"dynamicvit.predictors.{name}"]), "the rest is loaded"


def test_a_fresh_classifier_is_saved_with_its_number_of_classes(tmp_path: Path) -> None:
    model = sparse()
    model.dynamicvit.reset_classifier(3)
    model.save_pretrained(tmp_path)
    again = DynamicViTForImageClassification.from_pretrained(tmp_path)
    assert again.config.num_labels == again.dynamicvit.num_classes == 3
    labels = torch.tensor([0, 2])
    assert torch.equal(
        again(VIT.images(), labels=labels).loss, model(VIT.images(), labels=labels).loss
    )


def test_fresh_prediction_modules_where_the_file_has_none(tmp_path: Path) -> None:
    model = sparse()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {n: value for n, value in load_file(file).items() if "predictors.2" not in n}
    save_file(tensors, file, metadata={"format": "pt"})
    torch.manual_seed(0)
    fresh = DynamicViTForImageClassification.from_pretrained(tmp_path).dynamicvit.predictors[2]
    assert torch.equal(fresh.norm.weight, torch.ones(48))
    assert torch.equal(fresh.project.bias, torch.zeros(48))
    assert 0.015 < fresh.project.weight.std() < 0.025


@torch.no_grad()
def test_in_the_librarys_own_format(tmp_path: Path) -> None:
    core, images = VIT.sparse(id2label=LABELS), VIT.images()
    core.save_pretrained(tmp_path)
    again = DynamicViT.from_pretrained(tmp_path)
    assert isinstance(again.backbone, transformers.ViTForImageClassification)
    assert torch.equal(again(images), core(images))
    assert again.pretrained_cfg == core.pretrained_cfg
    edited = json.loads((tmp_path / "config.json").read_text())
    edited["backbone_config"]["model_type"] = "resnet"
    (tmp_path / "config.json").write_text(json.dumps(edited))
    with pytest.raises(InputError, match="does not describe a model"):
        DynamicViT.from_pretrained(tmp_path)


# ---------------------------------------------------------------- pipelines and commands


def photograph() -> Image.Image:
    """Smooth, so that ways to resize agree, and neither square nor of a model's size."""
    rows, columns = np.mgrid[0:1:90j, 0:1:150j]
    waves = [np.sin(6 * rows + 3 * columns * phase) for phase in (1, 2, 3)]
    return Image.fromarray((np.stack(waves, axis=2) * 127 + 128).astype(np.uint8))


def processor(height: int = 64, width: int = 80) -> Any:
    return transformers.ViTImageProcessor(size={"height": height, "width": width})


def test_pipelines(tmp_path: Path) -> None:
    model, image = sparse(id2label=LABELS), photograph()
    pipe = transformers.pipeline("image-classification", model=model, image_processor=processor())
    answer = pipe(image, top_k=NUM_CLASSES)
    with torch.no_grad():
        pixels = processor()(image, return_tensors="pt")["pixel_values"]
        expected = model(pixels).logits.softmax(dim=-1)[0]
    assert [found["label"] for found in answer] == [
        LABELS[index] for index in expected.argsort(descending=True).tolist()
    ]
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    pipe = transformers.pipeline("image-classification", model=str(tmp_path))
    again = pipe(image, top_k=NUM_CLASSES)
    assert [found["label"] for found in again] == [found["label"] for found in answer]
    assert [found["score"] for found in again] == pytest.approx([f["score"] for f in answer])


@torch.no_grad()
def test_a_folder_is_a_model_for_every_command(tmp_path: Path) -> None:
    model, images = sparse(id2label=LABELS), VIT.images()
    model.save_pretrained(tmp_path / "sparse")
    core = load(tmp_path / "sparse")
    assert isinstance(core, DynamicViT)
    assert torch.equal(core(images), model(images).logits)
    assert core.pretrained_cfg["label_names"] == list(LABELS.values())
    assert load(tmp_path / "sparse", keep_ratio=0.3).keep_ratio == 0.3
    with pytest.raises(InputError, match="stages can't be moved"):
        load(tmp_path / "sparse", stages=[0])

    dense = VIT.backbone()
    dense.save_pretrained(tmp_path / "dense")
    core = load(tmp_path / "dense", keep_ratio=1.0, stages=[2], method="dynamicvit")
    assert core.schedule.stages == (2,)
    assert_agree(core(images), dense(images).logits)
    assert "label_names" not in core.pretrained_cfg, "nobody named them"
    for folder in ("core", "again"):
        model = core if folder == "core" else DynamicViTForImageClassification.around(core)
        model.save_pretrained(tmp_path / folder)
        assert str(tmp_path) not in (tmp_path / folder / "config.json").read_text()


@torch.no_grad()
def test_eval_of_a_folder(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also densely, and at an image size for which positions are interpolated."""
    deit = BY_NAME["hf_deit"]
    photos = tmp_path / "photos"
    photos.mkdir()
    for turn in range(4):
        photograph().rotate(90 * turn).save(photos / f"{turn}.png")
    deit.backbone().save_pretrained(tmp_path / "dense")
    sparse(deit).save_pretrained(tmp_path / "sparse")
    processor(48, 48).save_pretrained(tmp_path / "sparse")
    for folder in ("dense", "sparse"):
        words = ["eval", photos, "--model", tmp_path / folder, "--workers", 0, "--json", "-"]
        assert command(*words, "--compare-dense", "--keep-ratio", 1.0) == 0
        assert json.loads(capsys.readouterr().out)["agreement"] == 1.0
        assert command(*words, "--compare-dense", "--dense", "--image-size", "64x80") == 0
        assert json.loads(capsys.readouterr().out)["agreement"] == 1.0


@pytest.mark.parametrize("terminal", [True, False])
def test_commands_draw_bars_on_a_terminal_only(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """transformers asks the Hub's library when it is imported."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    enable_progress_bars()
    assert command("backbones", "--help") == 0
    assert are_progress_bars_disabled() == (not terminal)
    enable_progress_bars()


def test_bench_of_a_folder(tmp_path: Path, command: Callable[..., int]) -> None:
    sparse(BY_NAME["hf_deit"]).save_pretrained(tmp_path)
    words = ("--threads", 1, "--samples", 2, "--batch-size", 1, "--precision", "fp32")
    assert command("bench", "--model", tmp_path, "--image-size", 64, *words) == 0


def test_folders_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"dynamicvit\.load"):
        DynamicViT.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, content = load_file(file), file.read_bytes()
    del tensors["dynamicvit.backbone.classifier.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing .*classifier\.weight"):
        load(tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        load(tmp_path)
    monkeypatch.delitem(sys.modules, "dynamicvit.transformers.folder")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install '\.\[transformers\]'"):
        load(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: processor(48, 48),
        lambda: transformers.DeiTImageProcessor(
            size={"height": 60, "width": 60}, crop_size={"height": 48, "width": 48}
        ),
        lambda: transformers.BitImageProcessor(
            size={"shortest_edge": 60}, crop_size={"height": 48, "width": 48}
        ),
        lambda: processor(48, 48).__class__(size={"height": 48, "width": 48}, do_normalize=False),
        lambda: transformers.ViTImageProcessor(
            size={"height": 48, "width": 48}, rescale_factor=1 / 127.5, image_mean=[1.0, 0.9, 1.1]
        ),
        lambda: transformers.ViTImageProcessor(
            size={"height": 48, "width": 48}, do_rescale=False, image_mean=[99.0, 128.0, 1.0]
        ),
    ],
    ids=[
        "squashed",
        "squashed and cropped",
        "cropped",
        "not normalized",
        "rescaled otherwise",
        "not rescaled",
    ],
)
def test_images_are_prepared_as_the_saved_processor_does(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    deit, image = BY_NAME["hf_deit"], photograph()
    deit.backbone().save_pretrained(tmp_path)
    make().save_pretrained(tmp_path)
    core = load(tmp_path)
    ours = eval_transform(core)(image)
    theirs = make()(image, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape == (3, 48, 48)
    assert (ours - theirs).abs().max() < 0.05 * theirs.std()
    core.save_pretrained(tmp_path / "sparse")
    again = eval_transform(DynamicViT.from_pretrained(tmp_path / "sparse"))(image)
    assert torch.equal(again, ours)


@pytest.mark.parametrize("resample", range(-1, 9))
def test_every_way_to_resize_is_taken_or_refused(resample: int, tmp_path: Path) -> None:
    """Newer Pillows have more of them than timm takes."""
    BY_NAME["hf_deit"].backbone().save_pretrained(tmp_path)
    processor(48, 48).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "resample": resample}))
    if 0 <= resample <= 5:
        assert eval_transform(load(tmp_path))(photograph()).shape == (3, 48, 48)
    else:
        with pytest.raises(InputError, match=r"preprocessor_config\.json"):
            load(tmp_path)


@pytest.mark.filterwarnings("ignore:.pin_memory:UserWarning")  # on machines without a GPU
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    """With a small model in place of the one that would be downloaded."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "huggingface.md").read_text()
    VIT.backbone(id2label=LABELS).save_pretrained(tmp_path / "dense")
    processor().save_pretrained(tmp_path / "dense")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names: dict[str, Any] = {"image": photograph(), "photos": Scenes()}
    for block in blocks:
        block = block.replace("google/vit-base-patch16-224", str(tmp_path / "dense"))
        block = block.replace("runs/", f"{tmp_path}/")
        exec(block, names)
    assert type(names["model"]) is DynamicViTForImageClassification
    assert names["model"].keep_ratio == 0.5
    assert names["logits"].shape == (1, NUM_CLASSES)
    assert names["classify"](photograph())[0]["label"] in LABELS.values()


# ---------------------------------------------------------------- what is refused


def test_what_is_refused() -> None:
    class Own(transformers.ViTForImageClassification):
        """May compute anything."""

    backbone = VIT.backbone()
    for other in (Own(backbone.config), backbone.vit):
        with pytest.raises(UnsupportedBackboneError, match=r"not supported.*transformers ViT"):
            sparsify(other, method="dynamicvit")
    backbone.vit.layers[2].attention.scaling = 0.5
    with pytest.raises(UnsupportedBackboneError, match=r"attention scale 0\.5"):
        sparsify(backbone, method="dynamicvit")
    backbone.vit.layers[1].attention = nn.Identity()
    with pytest.raises(UnsupportedBackboneError, match="attention class Identity"):
        sparsify(backbone, method="dynamicvit")
    backbone.vit.layers[0] = nn.Identity()
    with pytest.raises(UnsupportedBackboneError, match="block class Identity"):
        sparsify(backbone, method="dynamicvit")


def test_the_classes_that_are_named_before_transformers_is_imported() -> None:
    ours = (family for family in backbones._FAMILIES if issubclass(family, HFBackbone))
    covered = {kind.__name__ for family in ours for kind in family.model_classes}
    assert set(backbones.OPTIONAL["transformers"].classes) == covered


def test_a_transformers_that_is_too_old() -> None:
    with pytest.raises(ImportError, match=r"transformers 4\.57\.0 is too old.*5\.\d+ or newer"):
        require("4.57.0")
    require(OLDEST)
    require(f"{OLDEST}.1")


def test_the_oldest_version_is_the_extras() -> None:
    project = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    assert f'"transformers>={OLDEST}"' in project


def test_timms_models_stay_timms() -> None:
    model = sparsify(
        timm.create_model("deit_tiny_patch16_224", depth=4, embed_dim=48), method="dynamicvit"
    )
    assert type(model) is DynamicViT
