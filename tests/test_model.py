"""DynamicViT as a module: sizes, refusals, modes, precision, checkpointing, compilation, copies."""

from __future__ import annotations

import copy
import io
import pickle
import re
import shutil
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from dynamicvit import (
    DynamicViT,
    InputError,
    MaskedOutput,
    PredictionModule,
    PrunedOutput,
    Schedule,
    UnsupportedBackboneError,
    sparsify,
)
from dynamicvit.core.decisions import best_k_sampler, gumbel_sampler, gumbel_top_k_sampler
from dynamicvit.core.method import Choice
from dynamicvit.layers.tokens import Tokens
from families import (
    BY_NAME,
    DEIT,
    HF_FAMILIES,
    NUM_CLASSES,
    Family,
    assert_agree,
    each_family,
    few_families,
    kinds_or_all,
    randomize,
)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


# ---------------------------------------------------------------- the two modes


@torch.no_grad()
def test_eval_gives_a_plain_tensor_and_train_a_typed_output() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    assert type(model(images)) is Tensor
    assert model(images).shape == (2, NUM_CLASSES)
    assert isinstance(model.forward_pruned(images), PrunedOutput)
    output = model.train()(images)
    assert isinstance(output, MaskedOutput)
    assert output.logits.shape == (2, NUM_CLASSES)
    assert output.features.x.shape == (2, 21, 48)
    assert output.features.decision is output.decisions[-1]


@torch.no_grad()
def test_each_path_can_be_called_in_either_mode() -> None:
    model, images, decisions = DEIT.sparse(), DEIT.images(), DEIT.decisions()
    expected = model.forward_pruned(images, decisions).logits
    for mode in (True, False):
        model.train(mode)
        assert_agree(model.forward_masked(images, decisions).logits, expected)
        assert_agree(model.forward_pruned(images, decisions).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float64])
@torch.no_grad()
def test_decisions_of_any_dtype(dtype: torch.dtype) -> None:
    model, images, decisions = DEIT.sparse(), DEIT.images(), DEIT.decisions()
    expected = model.forward_pruned(images, decisions).logits
    decisions = [decision.to(dtype) for decision in decisions]
    assert_agree(model.forward_masked(images, decisions).logits, expected)
    assert_agree(model.forward_pruned(images, decisions).logits, expected)


@torch.no_grad()
def test_what_was_dropped_stays_dropped() -> None:
    """Drawn or given, the reported decisions are those of the stages so far together."""
    torch.manual_seed(0)
    model, images, given = DEIT.sparse().train(), DEIT.images(), DEIT.decisions(share=0.5)
    for decisions in (model(images).decisions, model.forward_masked(images, given).decisions):
        assert all(set(decision.unique().tolist()) == {0.0, 1.0} for decision in decisions)
        for before, after in pairwise(decisions):
            assert (after <= before).all()
    for taken, product in zip(decisions, torch.stack(given).cumprod(dim=0), strict=True):
        assert torch.equal(taken, product)


@torch.no_grad()
def test_training_draws_anew_and_inference_does_not() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images).decisions[0], model(images).decisions[0])


@torch.no_grad()
def test_another_image_of_the_batch_has_no_influence() -> None:
    model, images = DEIT.sparse(), DEIT.images(4)
    assert_agree(model(images)[:1], model(images[:1]))
    decisions = DEIT.decisions(4)
    first = [decision[:1] for decision in decisions]
    together = model.forward_masked(images, decisions).logits
    assert_agree(together[:1], model.forward_masked(images[:1], first).logits)


@torch.no_grad()
def test_stages_anywhere_and_none_at_all() -> None:
    images = DEIT.images()
    for stages in ([0], [3], [0, 1, 2, 3]):
        model = DEIT.sparse(keep_ratio=0.5, stages=stages)
        decisions = DEIT.decisions(stages=len(stages))
        masked = model.forward_masked(images, decisions)
        assert_agree(masked.logits, model.forward_pruned(images, decisions).logits)
        assert len(model.train()(images).decisions) == len(stages)
    model = DEIT.sparse(stages=[])
    assert_agree(model(images), model.backbone(images))
    assert model.train()(images).decisions == ()
    assert_agree(model(images).logits, model.backbone(images))


@torch.no_grad()
def test_predictors_can_be_replaced() -> None:
    """Other ways to choose tokens are predictors too: here, the last patches are always best."""

    class Last(Choice):
        def keep_scores(self, tokens: Tokens) -> Tensor:
            place = torch.arange(tokens.num_patches, dtype=torch.float32)
            return place.expand(len(tokens.x), -1)

    model = DynamicViT(DEIT.backbone(), Schedule((1,), (0.25,)), [Last()]).eval()
    survived = model.forward_pruned(DEIT.images()).kept[0]
    assert survived[0].tolist() == [False] * 15 + [True] * 5
    with pytest.raises(InputError, match="1 stages, but 2 predictors"):
        DynamicViT(DEIT.backbone(), Schedule((1,), (0.25,)), [Last(), Last()])
    with pytest.raises(InputError, match=r"are Methods .*, got a Identity"):
        DynamicViT(DEIT.backbone(), Schedule((1,), (0.25,)), [nn.Identity()])


# ---------------------------------------------------------------- image sizes


@pytest.mark.parametrize("name", ["deit", "dinov2", "eva02_fused", "beit"])
@pytest.mark.parametrize("grid", [(3, 7), (1, 1)])
@torch.no_grad()
def test_any_size_that_the_backbone_is_built_for(name: str, grid: tuple[int, int]) -> None:
    """Small ones; tests/test_large.py has those of 384 and 512 px."""
    family = Family(name, BY_NAME[name].model, patch=BY_NAME[name].patch, grid=grid)
    model, images = family.sparse(), family.images(1)
    output = model.forward_pruned(images)
    assert output.grid == grid
    assert output.kept[0].sum() == max(1, int(family.num_patches * 0.7 + 1e-9))
    decisions = family.decisions(1)
    assert_agree(
        model.forward_masked(images, decisions).logits,
        model.forward_pruned(images, decisions).logits,
    )
    model.keep_ratio = 1.0
    assert_agree(model(images), model.backbone(images))


@pytest.mark.parametrize("name", ["deit", "registers", "dinov3", "eva02_split"])
@torch.no_grad()
def test_one_model_for_many_sizes(name: str) -> None:
    family = BY_NAME[name]
    model = family.sparse(dynamic_img_size=True)
    for rows, columns in ((4, 5), (5, 4), (7, 2)):
        images = torch.randn(2, 3, rows * family.patch, columns * family.patch)
        model.keep_ratio = 0.5
        output = model.forward_pruned(images)
        assert output.grid == (rows, columns)
        decisions = [survived.float() for survived in output.kept]
        assert_agree(model.forward_masked(images, decisions).logits, output.logits)
        model.keep_ratio = 1.0
        assert_agree(model(images), model.backbone(images))
    with pytest.raises(InputError, match=rf"images of 50x70.* multiples of its {family.patch}x"):
        model(torch.randn(2, 3, 50, 70))


@torch.no_grad()
def test_padding_of_sizes_that_are_no_multiple() -> None:
    model = DEIT.sparse(keep_ratio=1.0, dynamic_img_size=True, dynamic_img_pad=True)
    images = torch.randn(2, 3, 50, 70)
    assert model.forward_pruned(images).grid == (4, 5)
    assert_agree(model(images), model.backbone(images))


@torch.no_grad()
def test_a_backbone_whose_size_was_changed() -> None:
    model = DEIT.sparse(keep_ratio=1.0)
    model.backbone.set_input_size((96, 48))
    images = torch.randn(1, 3, 96, 48)
    assert model.forward_pruned(images).grid == (6, 3)
    assert_agree(model(images), model.backbone(images))


@torch.no_grad()
def test_any_number_of_channels() -> None:
    model = DEIT.sparse(keep_ratio=1.0, in_chans=1)
    images = DEIT.images()[:, :1]
    assert_agree(model(images), model.backbone(images))
    with pytest.raises(InputError, match=r"\(batch, 1, height, width\), got \(2, 3, 64, 80\)"):
        model(DEIT.images())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 80), "(batch, 3, height, width), got (3, 64, 80)"),
        (torch.zeros(1, 1, 3, 64, 80), "got (1, 1, 3, 64, 80)"),
        (torch.zeros(2, 4, 64, 80), "got (2, 4, 64, 80)"),
        (torch.zeros(2, 64, 80, 3), "got (2, 64, 80, 3)"),
        (torch.zeros(2, 3, 64, 80, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(2, 3, 64, 80, dtype=torch.long), "got torch.int64"),
        (torch.zeros(2, 3, 64, 80, dtype=torch.float64), "torch.float32 like the weights, got"),
        (torch.zeros(2, 3, 80, 64), "images of 80x64, but this backbone takes 64x80"),
        (torch.zeros(2, 3, 224, 224), "images of 224x224, but this backbone takes 64x80"),
    ],
)
def test_batches_that_can_not_be(images: Tensor, message: str) -> None:
    model = DEIT.sparse()
    calls = [model, model.forward_features, model.forward_masked, model.forward_pruned]
    for call in (*calls, model.forward_dense):
        with pytest.raises(InputError, match=re.escape(message)):
            call(images)
    with pytest.raises(InputError, match=re.escape(message)):
        model.train()(images)


@pytest.mark.parametrize(
    "decisions",
    [
        [],
        [torch.ones(2, 20)],
        [torch.ones(2, 20)] * 4,
        [torch.ones(2, 21)] * 3,
        [torch.ones(1, 20)] * 3,
        [torch.ones(20)] * 3,
    ],
)
def test_decisions_of_another_shape(decisions: list[Tensor]) -> None:
    model, images = DEIT.sparse(), DEIT.images()
    message = re.escape(f"3 tensors of shape (2, 20), got {[tuple(d.shape) for d in decisions]}")
    for path in (model.forward_masked, model.forward_pruned):
        with pytest.raises(InputError, match=message):
            path(images, decisions)


@pytest.mark.parametrize("value", [0.7, 2.0, -1.0, float("nan")])
def test_decisions_that_are_neither_0_nor_1(value: float) -> None:
    """The paths would read them differently."""
    model, images, decisions = DEIT.sparse(), DEIT.images(), DEIT.decisions()
    decisions[1][0, 3] = value
    for path in (model.forward_masked, model.forward_pruned):
        with pytest.raises(InputError, match=rf"decisions must be 0 or 1, got {value:.4g}"):
            path(images, decisions)


@torch.no_grad()
def test_decisions_with_a_rounding_error() -> None:
    model, images, decisions = DEIT.sparse(), DEIT.images(), DEIT.decisions()
    exact = model.forward_pruned(images, decisions).logits
    rounded = [decision + 1e-3 * (torch.rand(decision.shape) - 0.5) for decision in decisions]
    for path in (model.forward_masked, model.forward_pruned):
        assert_agree(path(images, rounded).logits, exact)


def test_an_empty_batch() -> None:
    """timm's own attention has no answer to it either."""
    model, images = DEIT.sparse(), DEIT.images()[:0]
    decisions = [decision[:0] for decision in DEIT.decisions()]
    for path in (model.forward_masked, model.forward_pruned):
        for given in (None, decisions):
            with pytest.raises(InputError, match=r"at least one, got \(0, 3, 64, 80\)"):
                path(images, given)


class OwnTransformer(VisionTransformer):
    """A subclass may compute anything."""


TINY = dict(embed_dim=48, num_heads=3, depth=4, img_size=64, num_classes=3)


def tiny_vit(**kwargs: Any) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **TINY, **kwargs)


def with_scale(scale: float) -> nn.Module:
    backbone = tiny_vit()
    backbone.blocks[2].attn.scale = scale
    return backbone


def with_pooled_places() -> nn.Module:
    backbone = tiny_vit(global_pool="map")
    backbone.attn_pool = AttentionPoolLatent(48, num_heads=3, feat_size=16, pos_embed="abs")
    return backbone


UNSUPPORTED = {
    "ResNet is not supported.": lambda: timm.create_model("test_resnet"),
    "because of its GlobalResponseNormMlp": lambda: timm.create_model("convnextv2_atto"),
    "linear.Linear is not supported.": lambda: nn.Linear(3, 3),
    "OwnTransformer is not supported.": lambda: OwnTransformer(depth=2, embed_dim=48, num_heads=3),
    "block class ParallelScalingBlock": lambda: tiny_vit(block_fn=ParallelScalingBlock),
    "block class ParallelThingsBlock": lambda: tiny_vit(block_fn=ParallelThingsBlock),
    "block class DiffParallelScalingBlock": lambda: tiny_vit(block_fn=DiffParallelScalingBlock),
    "block class ResPostBlock": lambda: tiny_vit(block_fn=ResPostBlock),
    "attention class DiffAttention": lambda: tiny_vit(attn_layer="diff"),
    "attention scale 0.5 (heads of 16": lambda: with_scale(0.5),
    "attention pooling (pos_embed)": with_pooled_places,
    "patch_drop_rate > 0": lambda: tiny_vit(patch_drop_rate=0.1),
    "global_pool=''": lambda: tiny_vit(global_pool=""),
    "global_pool='prr'": lambda: tiny_vit(global_pool="prr"),
    "embedding class HybridEmbed": lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=2),
    "attention class AttentionRope": lambda: timm.create_model(
        "vit_small_patch16_rope_224", **TINY
    ),
    "block class EvaBlockPostNorm": lambda: timm.create_model(
        "eva02_tiny_patch14_224", **{**TINY, "img_size": 56}, use_post_norm=True
    ),
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_a_backbone_that_no_family_covers(reason: str) -> None:
    """The error names the class and lists the families; nothing was changed."""
    backbone = UNSUPPORTED[reason]()
    with pytest.raises(UnsupportedBackboneError, match=re.escape(reason)) as caught:
        sparsify(backbone, method="dynamicvit")
    message = str(caught.value)
    assert f"{type(backbone).__module__}.{type(backbone).__qualname__} is not supported" in message
    for family in ("VisionTransformer (ViT, DeiT", "Eva (EVA, EVA-02, DINOv3)", "Beit (BEiT"):
        assert family in message.partition("Supported families: ")[2]
    assert "\n" not in message


def test_what_is_no_dense_model() -> None:
    with pytest.raises(InputError, match="DynamicViT already: set its keep_ratio"):
        sparsify(DEIT.sparse(), method="dynamicvit")
    with pytest.raises(InputError, match="got 'deit_small_patch16_224'"):
        sparsify("deit_small_patch16_224", method="dynamicvit")


# ---------------------------------------------------------------- training


@few_families
def test_dropout_and_drop_path_work_in_training(family: Family) -> None:
    rates = ["drop_path_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate"]
    images, decisions = family.images(3), family.decisions(3, stages=2)
    for rate in rates:
        torch.manual_seed(0)
        model = family.sparse(depth=2, stages=(0, 1), **{rate: 0.5})
        calm = model.forward_masked(images, decisions).logits
        assert_agree(calm, model.forward_pruned(images, decisions).logits)
        model.train()
        noisy = [model.forward_masked(images, decisions).logits for _ in range(2)]
        assert (noisy[0] - noisy[1]).abs().max() > 1e-3, rate
        model(images).logits.square().sum().backward()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())
        assert torch.equal(model.eval().forward_masked(images, decisions).logits, calm)


@kinds_or_all
def test_grad_checkpointing_gives_the_same_gradients_by_running_blocks_again(
    family: Family,
) -> None:
    model, images = family.sparse().train(), family.images()
    calls = []
    for block in model.blocks:
        norm = next(part for part in block.modules() if isinstance(part, nn.LayerNorm))
        norm.register_forward_hook(lambda *_: calls.append(1))
    results, counts = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        calls.clear()
        torch.manual_seed(0)
        model(images).logits.square().sum().backward()
        results.append(gradients(model))
        counts.append(len(calls))
    assert counts == [4, 8]
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name])


@few_families
def test_grad_checkpointing_in_the_pruned_path_and_without_gradients(family: Family) -> None:
    model, images = family.sparse(), family.images()
    expected = model(images)
    model.set_grad_checkpointing()
    assert_agree(model(images), expected)
    model(images).sum().backward()
    with torch.inference_mode():
        assert_agree(model(images), expected.detach())


@pytest.mark.parametrize("checkpointing", [False, True])
@few_families
def test_a_frozen_backbone(family: Family, checkpointing: bool) -> None:
    """The paper's first five epochs: only the prediction modules learn."""
    torch.manual_seed(0)
    model = family.sparse().train()
    model.backbone.requires_grad_(False)
    model.set_grad_checkpointing(checkpointing)
    model(family.images()).logits.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    for name, parameter in model.predictors.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


# ---------------------------------------------------------------- leaving memory in training

early_leaves = pytest.mark.parametrize("masking", ["lagged", "compact"])


@early_leaves
@few_families
@torch.no_grad()
def test_leaving_memory_early_gives_the_same_output(family: Family, masking: Any) -> None:
    model, images = family.sparse(), family.images(4)
    given = family.decisions(4, share=0.6)
    given[0][0] = 0  # images that keep nothing, and all
    given[0][1] = 1
    expected = model.forward_masked(images, given)
    lengths: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    output = model.forward_masked(images, given, masking=masking)
    assert_agree(output.logits, expected.logits)
    for decision, exact in zip(output.decisions, expected.decisions, strict=True):
        assert torch.equal(decision, exact)
    fullest = [int(decision.sum(dim=1).max()) for decision in expected.decisions]
    late = {"lagged": 1, "compact": 0}[masking]
    patches = [family.num_patches] * (1 + late) + fullest[: 3 - late]
    assert lengths == [model.num_prefix_tokens + count for count in patches]
    assert output.features.num_patches == patches[-1]
    assert_agree(model.forward_head(output.features), expected.logits)


@kinds_or_all
def test_leaving_late_gives_the_same_gradients_where_tokens_compete(family: Family) -> None:
    model, images = family.sparse(keep_ratio=0.6).train(), family.images(3)
    results = []
    for masking in ("full", "lagged"):
        model.zero_grad()
        output = model.forward_masked(images, sampler=best_k_sampler, masking=masking)
        loss = output.logits.square().sum() + sum(d.mean() for d in output.decisions)
        loss.backward()
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert_agree(results[1][name], gradient, tolerance=1e-4)


def test_leaving_at_once_cuts_the_decisions_gradient_and_not_the_log_odds() -> None:
    model, images = DEIT.sparse().train(), DEIT.images()
    output = model.forward_masked(images, masking="compact")
    assert not any(decision.requires_grad for decision in output.decisions)
    sum(odds[odds.isfinite()].sum() for odds in output.keep_scores).backward()
    for name, parameter in model.predictors.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("masking", ["full", "lagged", "compact"])
@few_families
def test_a_batch_that_loses_everything(family: Family, masking: Any) -> None:
    model, images = family.sparse().train(), family.images()
    for predictor in model.predictors:
        predictor.mlp[-1].bias.data = torch.tensor([-100.0, 100.0])
    for sampler in (gumbel_sampler, gumbel_top_k_sampler, best_k_sampler):
        model.zero_grad()
        output = model.forward_masked(images, sampler=sampler, masking=masking)
        if sampler is gumbel_sampler:
            assert not any(decision.any() for decision in output.decisions)
        output.logits.square().sum().backward()
        assert output.logits.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@kinds_or_all
@torch.no_grad()
def test_training_on_the_best_k_sees_what_inference_sees(family: Family) -> None:
    model, images = family.sparse(keep_ratio=0.6), family.images(3)
    pruned = model.forward_pruned(images)
    stages = list(zip(pruned.keep_scores, pruned.kept, strict=True))
    maskings: tuple[Any, ...] = "full", "lagged", "compact"
    for masking in maskings:
        masked = model.forward_masked(images, sampler=best_k_sampler, masking=masking)
        assert_agree(masked.logits, pruned.logits)
        entered = torch.ones_like(pruned.kept[0])
        ours = zip(masked.keep_scores, masked.decisions, strict=True)
        for (odds, decision), (score, kept) in zip(ours, stages, strict=True):
            assert torch.equal(decision > 0.5, kept)
            probabilities = odds[entered].sigmoid(), score[entered].sigmoid()
            torch.testing.assert_close(*probabilities, rtol=0, atol=1e-4)
            if masking == "compact":
                assert torch.equal(odds.isfinite(), entered)
            entered = kept


# ---------------------------------------------------------------- the teacher


@kinds_or_all
@torch.no_grad()
def test_student_and_teacher_can_share_the_first_blocks(family: Family) -> None:
    model, images, given = family.sparse(), family.images(), family.decisions()
    first = model.first_blocks(images)
    assert first.block == 1
    assert first.grid == family.grid
    assert_agree(model.forward_dense(first).logits, family.dense(model.backbone, images))
    masked = model.forward_masked(images, given).logits
    assert_agree(model.forward_masked(first, given).logits, masked)
    assert_agree(model.forward_pruned(first, given).logits, masked)


def test_given_decisions_receive_a_gradient() -> None:
    """Of dropped patches too, or a patch once dropped could never come back."""
    model, images = DEIT.sparse().train(), DEIT.images()
    decisions = [decision.requires_grad_() for decision in DEIT.decisions(share=0.5)]
    model.forward_masked(images, decisions).logits.square().sum().backward()
    gradient = decisions[0].grad
    assert gradient.isfinite().all()
    dropped_here_only = (decisions[0] < 0.5) & (decisions[1] > 0.5)
    assert dropped_here_only.any()
    assert (gradient[dropped_here_only] != 0).all()


def test_training_learns_which_patches_matter() -> None:
    """The whole chain of gradients points the right way: informative patches are kept.

    The class is written into two patches out of twenty; a loss on the logits and a price for each
    kept patch must raise the scores of the two above those of the others.
    """
    torch.manual_seed(0)
    model = DEIT.sparse(stages=[1], keep_ratio=0.3, depth=2)
    model.predictors = nn.ModuleList([PredictionModule(48)])
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    signs = torch.randn(NUM_CLASSES, 3, 16, 16)

    def scenes() -> tuple[Tensor, Tensor, Tensor]:
        images, labels = torch.randn(32, 3, 64, 80) * 0.3, torch.randint(NUM_CLASSES, (32,))
        marked = torch.zeros(32, 20, dtype=torch.bool)
        for image, label in enumerate(labels):
            for patch in torch.randperm(20)[:2].tolist():
                top, left = (side * 16 for side in divmod(patch, 5))
                images[image, :, top : top + 16, left : left + 16] = signs[label]
                marked[image, patch] = True
        return images, labels, marked

    for _ in range(60):
        images, labels, _ = scenes()
        output = model(images)
        ratio = (output.decisions[0].mean(dim=1) - 0.3).square().mean()
        loss = nn.functional.cross_entropy(output.logits, labels) + 2 * ratio
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels, marked = scenes()
    with torch.no_grad():
        survived = model.forward_pruned(images).kept[0]
    assert survived[marked].float().mean() > 0.6  # 0.3 would be chance
    assert survived[~marked].float().mean() < 0.28


# ---------------------------------------------------------------- precision and memory format


@kinds_or_all
def test_bf16_autocast(family: Family) -> None:
    model, images, decisions = family.sparse(), family.images(), family.decisions()
    exact = model.forward_masked(images, decisions).logits.detach()
    with torch.autocast("cpu", torch.bfloat16):
        masked = model.forward_masked(images, decisions).logits
        pruned = model.forward_pruned(images, decisions).logits
        output = model.train()(images)
        output.logits.float().square().sum().backward()
        assert model.eval()(images).isfinite().all()
    assert_agree(masked.float(), exact, tolerance=0.06)
    assert_agree(pruned.float(), exact, tolerance=0.06)
    assert all(set(d.detach().unique().tolist()) <= {0.0, 1.0} for d in output.decisions)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@kinds_or_all
@torch.no_grad()
def test_whole_models_in_other_precisions(family: Family) -> None:
    """Not in fp32 by the way: fp64 agrees to fp64's precision."""
    images, decisions = family.images(), family.decisions()
    exact = family.sparse().forward_pruned(images, decisions).logits
    double = family.sparse().double()
    masked = double.forward_masked(images.double(), decisions).logits
    assert masked.dtype == torch.float64
    assert_agree(masked, double.forward_pruned(images.double(), decisions).logits, tolerance=1e-12)
    assert_agree(masked.float(), exact)
    half = family.sparse().bfloat16()
    for path in (half.forward_masked, half.forward_pruned):
        logits = path(images.bfloat16(), decisions).logits
        assert logits.dtype == torch.bfloat16
        assert_agree(logits.float(), exact, tolerance=0.1)


@torch.no_grad()
def test_channels_last() -> None:
    model, images, decisions = DEIT.sparse(), DEIT.images(), DEIT.decisions()
    expected = model.forward_masked(images, decisions).logits
    model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    assert_agree(model.forward_masked(images, decisions).logits, expected)
    assert_agree(model.forward_pruned(images, decisions).logits, expected)


@torch.inference_mode()
def test_inference_mode() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    assert model(images).isfinite().all()


# ---------------------------------------------------------------- copies


def test_state_dict_round_trip() -> None:
    model, other, images = DEIT.sparse(), DEIT.sparse(seed=5), DEIT.images()
    assert not torch.equal(model(images), other(images))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(images), other(images))
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone", "predictors"}
    dense = {name.removeprefix("backbone.") for name in model.state_dict() if "predict" not in name}
    assert dense == set(DEIT.backbone().state_dict()), "timm's own names"


@few_families
@torch.no_grad()
def test_copies_and_pickles_are_independent(family: Family) -> None:
    model, images = family.sparse(), family.images()
    expected = model(images)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), expected)
        other.keep_ratio = 0.3
        randomize(other, seed=9)
        assert not torch.equal(other(images), expected)
        assert model.keep_ratio == 0.7
        assert torch.equal(model(images), expected)


# ---------------------------------------------------------------- a model as timm's


@kinds_or_all
@torch.no_grad()
def test_it_answers_as_a_timm_model(family: Family) -> None:
    model = family.sparse()
    backbone, images = model.backbone, family.images()
    assert model.num_classes == NUM_CLASSES
    assert model.num_features == family.num_features
    num_tokens = family.dense_tokens(backbone, images).shape[1]
    assert model.num_prefix_tokens == num_tokens - family.num_patches
    assert model.pretrained_cfg == model.default_cfg
    assert model.default_cfg["input_size"]
    assert model.get_classifier() is not None
    names = {name for name, _ in model.named_parameters()}
    placed = ("pos_embed", "position_embeddings", "position_embedding.weight", "cls_token")
    assert {n for n in names if n.endswith(placed) and "attn" not in n} <= model.no_weight_decay()
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(images).shape == (2, 3)
    assert model.train()(images).logits.shape == (2, 3)
    model.reset_classifier(0)
    assert model.eval()(images).shape == (2, family.num_features)


@torch.no_grad()
def test_another_pool_for_the_new_classifier() -> None:
    model, images = DEIT.sparse(keep_ratio=1.0), DEIT.images()
    model.reset_classifier(3, "avg")
    assert_agree(model(images), model.backbone(images))
    for pool in ("", "map", "median"):  # unpooled, without the module for it, unknown
        with pytest.raises(InputError, match=f"global_pool='{pool}'"):
            model.reset_classifier(5, pool)
    assert_agree(model(images), model.backbone(images))  # a refusal changes nothing
    assert model.num_classes == 3


# ---------------------------------------------------------------- torch.compile

# Compilation takes seconds for each block, so these models have one.


def compiled(model: nn.Module, backend: str) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, fullgraph=True)


def has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


@pytest.mark.extended
@each_family
@torch.no_grad()
def test_one_graph_holds_the_whole_of_inference(family: Family) -> None:
    """What becomes of a graph depends on the family no more: see the tests below."""
    model, images = family.sparse(depth=1, stages=[0], policy="merged"), family.images()
    assert_agree(compiled(model, "eager")(images), model(images))


@torch.no_grad()
def test_the_budget_of_a_compiled_model_can_be_changed() -> None:
    """With all that compilation is made of but the generated code."""
    model, images = DEIT.sparse(depth=1, stages=[0]), DEIT.images()
    fast = compiled(model, "aot_eager")
    before = fast(images)
    model.keep_ratio = 0.3
    assert (model(images) - before).abs().max() > 1e-2
    assert_agree(fast(images), model(images))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("lvvit", "aot_eager", marks=pytest.mark.extended),
        *((row.name, "eager") for row in HF_FAMILIES[:1]),
    ],
)
def test_compiled_training(name: str, backend: str) -> None:
    """A second classifier, and another library's modules, are in the graph; one has a backward."""
    family = BY_NAME[name]
    model, images = family.sparse(depth=1, stages=[0]).train(), family.images()
    results = []
    for call in (model, compiled(model, backend)):
        torch.manual_seed(0)
        model.zero_grad()
        output = call(images)
        assert isinstance(output, MaskedOutput)
        output.logits.square().sum().backward()
        results.append((output.decisions[0], output.logits.detach(), gradients(model)))
    (drawn, logits, exact), (drawn_too, logits_too, gradient) = results
    assert torch.equal(drawn, drawn_too)
    assert_agree(logits_too, logits)
    for name in exact:
        assert_agree(gradient[name], exact[name], tolerance=1e-4)


@pytest.mark.extended
@pytest.mark.skipif(not has_compiler(), reason="inductor needs a C++ compiler")
def test_compiled_by_inductor() -> None:
    model, images = DEIT.sparse(depth=1, stages=[0]), DEIT.images()
    with torch.no_grad():
        assert_agree(compiled(model, "inductor")(images), model(images), tolerance=1e-4)
