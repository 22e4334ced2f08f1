"""Every family: the dense network is found again, both paths run, and the right patches survive."""

from __future__ import annotations

import timm
import torch
from torch import Tensor

from dynamicvit import sparsify
from dynamicvit.core.decisions import gumbel_top_k_sampler
from dynamicvit.core.networks import DenseNetwork, core_of
from dynamicvit.core.outputs import MaskedOutput
from families import BY_NAME, Family, assert_agree, each_family, kinds_or_all


def everything(family: Family, batch: int = 2, stages: int = 3) -> list[Tensor]:
    return [torch.ones(batch, family.num_patches)] * stages


# ---------------------------------------------------------------- nothing dropped: timm's output


@each_family
@torch.no_grad()
def test_the_pruned_path_is_dense_when_nothing_is_dropped(family: Family) -> None:
    model, images = family.sparse(keep_ratio=1.0), family.images()
    dense = family.dense(model.backbone, images)
    assert_agree(model(images), dense)
    assert_agree(model.forward_pruned(images).logits, dense)
    assert_agree(model.forward_pruned(images, everything(family)).logits, dense)


@each_family
@torch.no_grad()
def test_the_masked_path_is_dense_when_nothing_is_dropped(family: Family) -> None:
    model, images = family.sparse(), family.images()
    masked = model.forward_masked(images, everything(family))
    assert_agree(masked.logits, family.dense(model.backbone, images))
    assert_agree(masked.features.x, family.dense_tokens(model.backbone, images))


@each_family
@torch.no_grad()
def test_forward_dense_is_the_backbone(family: Family) -> None:
    model, images = family.sparse(keep_ratio=0.3), family.images()
    output = model.forward_dense(images)
    logits, tokens = output.logits, output.features
    assert_agree(logits, family.dense(model.backbone, images))
    assert_agree(tokens.x, family.dense_tokens(model.backbone, images))
    assert tokens.num_patches == family.num_patches
    own = DenseNetwork(model)(images)
    assert torch.equal(own, family.dense(model.backbone, images))


@each_family
@torch.no_grad()
def test_the_last_block_gives_what_the_head_reads(family: Family) -> None:
    """And no more, where that is less: the numbers are those of the whole block."""
    model, images = family.sparse(keep_ratio=0.5).double(), family.images().double()
    whole = model.forward_tokens(images)
    assert whole.num_patches == model.schedule.kept(family.num_patches)[-1]
    assert_agree(model(images), model.forward_head(whole), 1e-12)
    merging = family.sparse(keep_ratio=0.5, policy="merged").double()
    assert_agree(merging(images), merging.forward_head(merging.forward_tokens(images)), 1e-12)


@kinds_or_all
@torch.no_grad()
def test_dropping_changes_the_output(family: Family) -> None:
    """Or the tests above would pass with a network that never drops anything."""
    model, images = family.sparse(keep_ratio=0.5), family.images()
    dense = family.dense(model.backbone, images)
    masked = model.forward_masked(images, family.decisions(share=0.5)).logits
    assert (model(images) - dense).abs().max() > 1e-2
    assert (masked - dense).abs().max() > 1e-2


@kinds_or_all
@torch.no_grad()
def test_the_backbone_is_left_as_it_was(family: Family) -> None:
    backbone, images = family.backbone(), family.images()
    before = family.dense(backbone, images)
    classes = [type(module) for module in backbone.modules()]
    names = list(backbone.state_dict())
    sparse = core_of(sparsify(backbone, method="dynamicvit"))
    assert sparse.backbone is backbone
    sparse.eval()(images)
    sparse.train()(images)
    sparse.eval()
    assert torch.equal(family.dense(backbone, images), before)
    assert [type(module) for module in backbone.modules()] == classes
    assert list(backbone.state_dict()) == names


@each_family
@torch.no_grad()
def test_features_and_head_compose_to_forward(family: Family) -> None:
    model, images = family.sparse(), family.images()
    features = model.forward_tokens(images)
    assert torch.equal(model.forward_features(images), features.x)
    assert features.num_patches == model.schedule.kept(family.num_patches)[-1]
    assert_agree(model.forward_head(features), model(images), 1e-6)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, family.num_features)
    if family.one_classifier:
        assert_agree(model.get_classifier()(pooled), model(images), 1e-6)

    model.train()
    torch.manual_seed(0)
    features = model.forward_tokens(images)
    torch.manual_seed(0)
    whole = model(images)
    assert features.num_patches == family.num_patches
    assert torch.equal(features.decision, whole.decisions[-1])
    assert torch.equal(model.forward_head(features), whole.logits)


# ---------------------------------------------------------------- gradients


@kinds_or_all
def test_backward_through_the_masked_path(family: Family) -> None:
    torch.manual_seed(0)
    model, images = family.sparse().train(), family.images(3)
    output = model(images)
    assert isinstance(output, MaskedOutput)
    assert output.logits.shape == (3, model.num_classes)
    assert output.grid == family.grid
    output.logits.square().sum().backward()
    for name, parameter in family.read(model):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for name, parameter in model.predictors.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@kinds_or_all
def test_backward_through_the_pruned_path(family: Family) -> None:
    """The choice passes no gradient there, so the prediction modules get none."""
    model = family.sparse()
    model(family.images()).square().sum().backward()
    for name, parameter in family.read(model.backbone):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in model.predictors.parameters())


# ---------------------------------------------------------------- survivors


@kinds_or_all
@torch.no_grad()
def test_the_best_k_survive_and_are_reported_in_image_order(family: Family) -> None:
    model, images = family.sparse(keep_ratio=0.6), family.images(3)
    output = model.forward_pruned(images)
    expected = [max(1, int(family.num_patches * 0.6**stage + 1e-9)) for stage in (1, 2, 3)]
    entered = torch.ones(3, family.num_patches, dtype=torch.bool)
    assert len(output.kept) == len(output.keep_scores) == 3
    for survived, kept in zip(output.kept, output.kept_index, strict=True):
        assert torch.equal(survived.nonzero()[:, 1].reshape(kept.shape), kept)
    for kept, survived, scores in zip(expected, output.kept, output.keep_scores, strict=True):
        assert survived.shape == scores.shape == (3, family.num_patches)
        assert survived.sum(dim=1).tolist() == [kept] * 3
        assert not (survived & ~entered).any(), "a patch came back"
        assert torch.equal(scores.isfinite(), entered), "scores of exactly those that entered"
        for image in range(3):
            worst_kept = scores[image][survived[image]].min()
            dropped = scores[image][entered[image] & ~survived[image]]
            assert (dropped <= worst_kept).all()
        entered = survived
    assert len({tuple(row.tolist()) for row in entered}) > 1, "images choose for themselves"

    held = model.forward_tokens(images).index
    assert torch.equal(held, entered.nonzero()[:, 1].reshape(3, -1))


@each_family
@torch.no_grad()
def test_the_pruned_path_computes_what_its_survivors_say(family: Family) -> None:
    """The report is the decision: running it again as a given one gives the same logits."""
    model, images = family.sparse(keep_ratio=0.6), family.images()
    output = model.forward_pruned(images)
    decisions = [survived.float() for survived in output.kept]
    assert_agree(model.forward_pruned(images, decisions).logits, output.logits)
    assert_agree(model.forward_masked(images, decisions).logits, output.logits)


@kinds_or_all
@torch.no_grad()
def test_the_masked_path_scores_like_the_pruned_path(family: Family) -> None:
    """Given the same survivors, both see the same scores at every stage: no train-test mismatch."""
    model, images = family.sparse(keep_ratio=0.6), family.images()
    output = model.forward_pruned(images)
    seen: list[Tensor] = []

    def replay(keep_scores: Tensor, decision: Tensor, k: int) -> Tensor:
        seen.append(keep_scores.masked_fill(decision < 0.5, float("-inf")))
        return output.kept[len(seen) - 1].float()

    model.forward_masked(images, sampler=replay)
    for masked, pruned in zip(seen, output.keep_scores, strict=True):
        torch.testing.assert_close(masked, pruned, rtol=0, atol=1e-4)


@kinds_or_all
@torch.no_grad()
def test_blocks_see_fewer_tokens_in_the_pruned_path(family: Family) -> None:
    """The tokens are really gone: each block's MLP gets P + K of them.

    The last one too, though only what is read is computed there where nobody watches.
    """
    model = family.sparse(keep_ratio=0.6)
    lengths: list[int] = []
    for block in model.blocks:
        mlp = getattr(block, "mlp", None) or block.intermediate
        mlp.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model(family.images())
    kept = (family.num_patches, *model.schedule.kept(family.num_patches))
    assert lengths == [model.num_prefix_tokens + patches for patches in kept]
    lengths.clear()
    model.train()(family.images())
    assert lengths == [model.num_prefix_tokens + family.num_patches] * 4


@kinds_or_all
def test_training_with_exactly_k_tokens(family: Family) -> None:
    torch.manual_seed(0)
    model = family.sparse(keep_ratio=0.6).train()
    output = model.forward_masked(family.images(3), sampler=gumbel_top_k_sampler)
    for kept, decision in zip(
        model.schedule.kept(family.num_patches), output.decisions, strict=True
    ):
        assert decision.sum(dim=1).tolist() == [kept] * 3
    output.logits.square().sum().backward()
    for name, parameter in model.predictors.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_table_has_the_families_that_the_project_names() -> None:
    """By what makes each of them special, so that a changed default of timm is noticed."""
    built = {name: family.backbone() for name, family in BY_NAME.items()}
    assert isinstance(built["deit_distilled"], timm.models.deit.VisionTransformerDistilled)
    assert built["registers"].num_prefix_tokens == 4
    assert built["registers"].cls_token is None
    assert isinstance(built["registers"].fc_norm, torch.nn.LayerNorm)
    assert built["dinov2_registers"].num_prefix_tokens == 5
    assert isinstance(built["clip"].norm_pre, torch.nn.LayerNorm)
    assert built["siglip"].num_prefix_tokens == 0
    assert built["siglip"].global_pool == "map"
    assert built["eva01"].rope is None
    assert built["eva02_fused"].blocks[0].attn.qkv is not None
    assert built["eva02_split"].blocks[0].attn.qkv is None
    assert all(built[name].rope is not None for name in ("eva02_fused", "eva02_split", "dinov3"))
    assert built["lvvit"].blocks[0].ls1.divisor == 2
    assert built["lvvit_third"].blocks[0].ls1.divisor == 3
    assert built["lvvit"].patch_embed.bn1.running_mean.abs().min() > 0
    assert built["beit"].blocks[0].attn.relative_position_bias_table is not None
    assert built["beit"].rel_pos_bias is None
    assert built["beit_shared"].blocks[0].attn.relative_position_bias_table is None
    assert built["beit_shared"].rel_pos_bias is not None
