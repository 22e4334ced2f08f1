"""The dense teacher: what it answers, and whether what it calls important is."""

from __future__ import annotations

import pytest
import torch

from dynamicvit import InputError
from dynamicvit.core.losses import LossWeights, dynamicvit_loss, guidance_loss
from dynamicvit.core.teacher import ask, dense_teacher, weigh_patches, weigh_some
from families import DEIT, Family, assert_agree, few_families, kinds_or_all


def test_the_teacher_is_the_backbone_as_it_was() -> None:
    model, images = DEIT.sparse(), DEIT.images()
    before = model.backbone(images)
    teacher = dense_teacher(model)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(1.5)
    assert torch.equal(teacher.backbone(images), before)
    assert not torch.equal(model.backbone(images), before)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    assert teacher.schedule.stages == model.schedule.stages


@kinds_or_all
def test_weighing_changes_nothing_of_the_answer(family: Family) -> None:
    model, images = family.sparse(), family.images()
    teacher = dense_teacher(model)
    expected = teacher.forward_dense(images)
    for source in (images, teacher.first_blocks(images)):
        output = weigh_patches(teacher, source)
        assert_agree(output.logits, expected.logits)
        assert_agree(output.loss_logits, expected.loss_logits)
        assert_agree(output.pooled, expected.pooled)
        assert_agree(output.features.x, expected.features.x)
        assert output.features.decision is None
        assert (output.patch_logits is None) == (expected.patch_logits is None)
        if expected.patch_logits is not None:
            assert_agree(output.patch_logits, expected.patch_logits)
        assert len(output.importance) == 3
        assert all(each.shape == (2, family.num_patches) for each in output.importance)
        for tensor in (output.logits, output.features.x, output.pooled, *output.importance):
            assert not tensor.requires_grad


EVERY_LOSS = LossWeights(1.0, 0.5, 0.5, 0.5, 2.0)


@few_families
def test_losses_can_learn_from_what_the_teacher_is_asked(family: Family) -> None:
    """It answers in inference mode, whose tensors a graph may not keep: no loss needs to."""
    model, images = family.sparse(), family.images()
    teacher, decisions = dense_teacher(model), family.decisions()
    gradients = []
    for taught in (ask(teacher, images), teacher.forward_dense(images)):
        model.zero_grad()
        output = model.forward_masked(images, decisions)
        labels = torch.zeros(len(images), dtype=torch.long)
        losses = dynamicvit_loss(
            output, (0.5,) * 3, labels=labels, teacher=taught, weights=EVERY_LOSS
        )
        losses.total.backward()
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters()})
        assert taught.logits.is_inference() == (len(gradients) == 1)
    for name, gradient in gradients[0].items():
        assert_agree(gradient, gradients[1][name], tolerance=1e-6)


@few_families
def test_some_images_are_weighed_and_all_are_answered(family: Family) -> None:
    teacher, images = dense_teacher(family.sparse()), family.images(4)
    expected, first = weigh_patches(teacher, images), teacher.first_blocks(images)
    for source, chosen in (
        (images, (0, 1, 0, 1)),
        (first, (1, 1, 0, 0)),
        (images, (1, 1, 1, 1)),
        (first, (0, 0, 0, 0)),
    ):
        rows = torch.tensor(chosen, dtype=torch.bool)
        output = weigh_some(teacher, source, rows)
        assert_agree(output.logits, expected.logits)
        assert_agree(output.loss_logits, expected.loss_logits)
        assert_agree(output.pooled, expected.pooled)
        assert_agree(output.features.x, expected.features.x)
        if expected.patch_logits is not None:
            assert_agree(output.patch_logits, expected.patch_logits)
        for ours, stage in zip(output.importance, expected.importance, strict=True):
            assert_agree(ours, stage * rows[:, None])


def test_an_image_that_was_not_weighed_has_no_part_in_the_guidance() -> None:
    teacher, images = dense_teacher(DEIT.sparse()), DEIT.images(4)
    odds = tuple(torch.randn(4, DEIT.num_patches) for _ in range(3))
    rows = torch.tensor([False, True, True, False])
    some = weigh_some(teacher, images, rows).importance
    of_those = tuple(stage[rows] for stage in weigh_patches(teacher, images).importance)
    expected = guidance_loss(tuple(stage[rows] for stage in odds), of_those) / 2
    torch.testing.assert_close(guidance_loss(odds, some), expected)


def test_without_weighing_there_is_no_importance() -> None:
    assert DEIT.sparse().forward_dense(DEIT.images()).importance is None


@kinds_or_all
@torch.no_grad()
def test_the_answer_moves_most_when_important_patches_leave(family: Family) -> None:
    """Against what really happens when one patch leaves at a stage and the others stay."""
    if family.name == "max":
        pytest.skip("a maximum's derivative does not see what would take its place")
    teacher, images, patches = dense_teacher(family.sparse()), family.images(4), family.num_patches
    output = weigh_patches(teacher, images)
    answers = output.logits.log_softmax(dim=-1)
    top, dense = answers.argmax(dim=-1, keepdim=True), answers.amax(dim=-1, keepdim=True)
    everything = torch.ones(4 * patches, patches)  # each image once for each patch that leaves
    without = everything - torch.eye(patches).repeat(4, 1)
    for stage in (0, 2):
        decisions = [everything] * stage + [without] + [everything] * (2 - stage)
        logits = teacher.forward_pruned(images.repeat_interleave(patches, 0), decisions).logits
        answer = logits.log_softmax(dim=-1).unflatten(0, (4, patches))
        moved = (answer.gather(2, top[:, None].expand(-1, patches, -1))[..., 0] - dense).abs()
        scores = torch.stack([output.importance[stage].flatten(), moved.flatten()])
        ranks = scores.argsort(dim=1).argsort(dim=1).float()
        assert torch.corrcoef(ranks)[0, 1] > 0.5


def test_a_patch_that_no_one_sees_is_not_important() -> None:
    """In the last block only the class token is read: what patches say to each other is lost."""
    teacher, images = (
        dense_teacher(DEIT.sparse(stages=[1, 3], keep_ratio=[0.7, 0.5])),
        DEIT.images(),
    )
    with torch.no_grad():  # the last block's attention adds nothing
        teacher.backbone.blocks[3].attn.proj.weight.zero_()
    early, late = weigh_patches(teacher, images).importance
    assert (early > 0).all()
    assert (late == 0).all()


def test_under_autocast_and_no_grad() -> None:
    teacher, images = dense_teacher(DEIT.sparse()), DEIT.images()
    exact = weigh_patches(teacher, images).importance
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = weigh_patches(teacher, images).importance
    for a, b in zip(exact, rough, strict=True):
        assert torch.corrcoef(torch.stack([a.flatten(), b.float().flatten()]))[0, 1] > 0.95


def test_bad_images_are_refused() -> None:
    with pytest.raises(InputError, match="images must be"):
        weigh_patches(dense_teacher(DEIT.sparse()), torch.zeros(3, 64, 80))
