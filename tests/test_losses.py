"""The losses: each part against its formula, the label-free mode, the guidance."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dynamicvit import InputError
from dynamicvit.core.losses import (
    LossWeights,
    classification_loss,
    distillation_loss,
    dynamicvit_loss,
    guidance_loss,
    hard_distillation_loss,
    ratio_loss,
    token_loss,
)
from dynamicvit.core.outputs import DenseOutput, MaskedOutput
from dynamicvit.layers.tokens import Tokens

B, N, C, P, CLASSES = 3, 6, 4, 1, 5
RATIOS = (0.5, 0.25)


def output(index: torch.Tensor | None = None) -> MaskedOutput:
    torch.manual_seed(0)
    held = N if index is None else index.shape[1]
    decisions = tuple((torch.rand(B, N) < ratio).float().requires_grad_() for ratio in RATIOS)
    last = decisions[-1] if index is None else decisions[-1].gather(1, index)
    features = Tokens(torch.randn(B, P + held, C, requires_grad=True), P, (N,), index, last)
    odds = tuple(torch.randn(B, N, requires_grad=True) for _ in RATIOS)
    logits = torch.randn(B, CLASSES, requires_grad=True)
    pooled = torch.randn(B, C, requires_grad=True)
    return MaskedOutput(logits, features, decisions, odds, (2, 3), pooled, logits)


def classifying(student: MaskedOutput) -> MaskedOutput:
    """The same from a family that trains the class token and each patch by themselves."""
    held = student.features.num_patches
    return replace(
        student,
        loss_logits=torch.randn(B, CLASSES, requires_grad=True),
        patch_logits=torch.randn(B, held, CLASSES, requires_grad=True),
    )


def teacher(
    patches: torch.Tensor | None = None, patch_logits: torch.Tensor | None = None
) -> DenseOutput:
    torch.manual_seed(1)
    x = torch.randn(B, P + N, C)
    if patches is not None:
        x[:, P:] = patches
    logits, loss_logits = torch.randn(2, B, CLASSES)
    return DenseOutput(
        logits,
        Tokens(x, P, (N,)),
        torch.randn(B, C),
        loss_logits,
        patch_logits,
        importance=tuple(torch.rand(len(RATIOS), B, N)),
    )


def test_total_is_the_weighted_sum_of_the_named_parts() -> None:
    student = output()
    weights = LossWeights(0.7, 0.3, 0.2, 0.9, 1.5, 0.4)
    losses = dynamicvit_loss(
        student,
        RATIOS,
        labels=torch.tensor([0, 1, 2]),
        teacher=teacher(),
        weights=weights,
    )
    total = sum(getattr(weights, name) * getattr(losses, name) for name in vars(weights))
    torch.testing.assert_close(losses.total, total)
    assert all(float(part.detach()) > 0 for part in vars(losses).values())


def test_the_default_weights_are_the_papers() -> None:
    assert vars(LossWeights()) == {
        "classification": 1.0,
        "distillation": 0.5,
        "token": 0.5,
        "feature": 0.0,
        "ratio": 2.0,
        "guidance": 0.0,
    }


def test_images_without_a_label_count_as_zero_in_the_mean() -> None:
    logits = torch.randn(B, CLASSES)
    labels = torch.tensor([2, -1, 0])
    expected = F.cross_entropy(logits[[0, 2]], labels[[0, 2]], reduction="sum") / B
    torch.testing.assert_close(classification_loss(logits, labels), expected)
    probabilities = F.one_hot(labels.clamp(min=0), CLASSES) * (labels >= 0)[:, None].float()
    torch.testing.assert_close(classification_loss(logits, probabilities), expected)
    assert classification_loss(logits, torch.full((B,), -1)) == 0


def test_classification_takes_indices_and_probabilities() -> None:
    logits, labels = torch.randn(B, CLASSES), torch.tensor([0, 3, 4])
    soft = F.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(
        classification_loss(logits, labels), classification_loss(logits, soft)
    )


def test_distillation_is_zero_for_the_teachers_answers_and_only_then() -> None:
    logits = torch.randn(B, CLASSES)
    assert distillation_loss(logits + 3, logits).abs() < 1e-6  # a shift changes no probability
    assert distillation_loss(-logits, logits) > 0.01


def test_another_teachers_logits_are_distilled_in_place_of_the_dense_networks() -> None:
    student, dense, other = output(), teacher(), torch.randn(B, CLASSES)
    weights = LossWeights(classification=0.0)
    own = dynamicvit_loss(student, RATIOS, teacher=dense, weights=weights)
    losses = dynamicvit_loss(
        student,
        RATIOS,
        teacher=dense,
        teacher_logits=other,
        distillation=hard_distillation_loss,
        weights=weights,
    )
    expected = hard_distillation_loss(student.loss_logits, other)
    torch.testing.assert_close(losses.distillation, expected)
    assert torch.equal(losses.token, own.token)
    torch.testing.assert_close(losses.total - own.total, 0.5 * (expected - own.distillation))

    alone = LossWeights(classification=0.0, token=0.0)
    logits_only = dynamicvit_loss(student, RATIOS, teacher_logits=other, weights=alone)
    torch.testing.assert_close(
        logits_only.distillation, distillation_loss(student.loss_logits, other)
    )


def test_token_loss_looks_at_survivors_only() -> None:
    student = output()
    patches = student.features.patches.detach().clone()
    patches[student.features.decision == 0] += 100.0
    assert token_loss(student, teacher(patches)) == 0
    patches[student.features.decision == 1] += 2.0
    torch.testing.assert_close(token_loss(student, teacher(patches)), torch.tensor(4.0))


def test_token_loss_finds_the_teachers_token_of_a_gathered_one() -> None:
    index = torch.tensor([[0, 2, 5], [1, 2, 3], [0, 1, 4]])
    student = output(index)
    patches = torch.full((B, N, C), 100.0)
    rows = index[..., None].expand(-1, -1, C)
    patches = patches.scatter(1, rows, student.features.patches.detach())
    assert token_loss(student, teacher(patches)) == 0


def test_token_loss_of_a_batch_that_keeps_nothing_is_zero() -> None:
    student = output()
    nothing = Tokens(student.features.x, P, (N,), None, torch.zeros(B, N))
    assert token_loss(replace(student, features=nothing), teacher()) == 0
    gone = Tokens(student.features.x[:, :P], P, (N,), torch.zeros(B, 0, dtype=torch.long))
    assert token_loss(replace(student, features=gone), teacher()) == 0


def test_a_family_that_classifies_patches_compares_those_logits_with_the_teachers() -> None:
    student = classifying(output())
    logits, kept = student.patch_logits.detach().clone(), student.features.decision == 1
    shifted = logits + 3.0  # which changes no probability
    shifted[~kept] = torch.randn(int((~kept).sum()), CLASSES)
    assert token_loss(student, teacher(patch_logits=shifted)) < 1e-6

    other = torch.randn(B, N, CLASSES)
    expected, found = other.softmax(-1)[kept], logits.softmax(-1)[kept]
    mean = (expected * (expected.log() - found.log())).sum() / kept.sum()
    torch.testing.assert_close(token_loss(student, teacher(patch_logits=other)), mean)


def test_patch_logits_find_the_teachers_of_a_gathered_token() -> None:
    index = torch.tensor([[0, 2, 5], [1, 2, 3], [0, 1, 4]])
    student = classifying(output(index))
    logits = torch.randn(B, N, CLASSES)
    rows = index[..., None].expand(-1, -1, CLASSES)
    logits = logits.scatter(1, rows, student.patch_logits.detach())
    assert token_loss(student, teacher(patch_logits=logits)) < 1e-6


def test_classification_and_distillation_look_at_the_logits_that_are_trained() -> None:
    student, dense, labels = classifying(output()), teacher(), torch.tensor([0, 1, 2])
    weights = LossWeights(token=0.0, ratio=0.0)
    losses = dynamicvit_loss(student, RATIOS, labels=labels, teacher=dense, weights=weights)
    torch.testing.assert_close(
        losses.classification, classification_loss(student.loss_logits, labels)
    )
    torch.testing.assert_close(
        losses.distillation, distillation_loss(student.loss_logits, dense.loss_logits)
    )


def test_feature_loss_is_the_mean_squared_distance_of_what_the_classifiers_read() -> None:
    student, dense = output(), teacher()
    alone = LossWeights(0.0, 0.0, 0.0, 2.0, 0.0)
    losses = dynamicvit_loss(student, RATIOS, teacher=dense, weights=alone)
    expected = sum((student.pooled - dense.pooled).square().flatten().tolist())
    assert math.isclose(losses.feature.item(), expected / (B * C), rel_tol=1e-5)
    torch.testing.assert_close(losses.total, 2 * losses.feature)
    losses.total.backward()
    assert student.pooled.grad is not None
    assert (student.pooled.grad != 0).all()


def test_ratio_loss_is_the_mean_over_stages_of_the_mean_over_images() -> None:
    decisions = (torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]]), torch.tensor([[1.0, 0, 0, 0]] * 2))
    expected = ((0.0**2 + 0.5**2) / 2 + 0.0) / 2
    assert math.isclose(float(ratio_loss(decisions, (0.5, 0.25))), expected)


def test_guidance_is_zero_at_the_teachers_ranking_and_ignores_tokens_that_are_gone() -> None:
    importance = torch.rand(B, N) + 0.1
    exact = importance.log() + 3.0
    assert guidance_loss((exact,), (importance,)).abs() < 1e-6
    gone = exact.clone()
    gone[:, :2] = float("-inf")
    assert guidance_loss((gone,), (importance,)).abs() < 1e-6
    assert guidance_loss((-exact,), (importance,)) > 0.01


def test_each_stage_has_its_own_guidance() -> None:
    first, second = torch.rand(B, N) + 0.1, torch.rand(B, N) + 0.1
    assert guidance_loss((first.log(), second.log()), (first, second)).abs() < 1e-6
    assert guidance_loss((first.log(), second.log()), (second, first)) > 0.01


def test_a_token_is_as_important_as_its_patches_together() -> None:
    importance = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    places = torch.tensor([[0, 0, 2, 2]])
    odds = torch.tensor([[3.0, 0.0, 7.0, 0.0]]).log()
    assert guidance_loss((odds,), (importance,), (places,)).abs() < 1e-6
    assert guidance_loss((odds,), (importance,), (None,)) > 1e-3
    assert guidance_loss((odds,), (importance,)) > 1e-3


def test_guidance_does_not_ask_how_large_importance_is() -> None:
    odds, importance = torch.randn(B, N), torch.rand(B, N)
    torch.testing.assert_close(
        guidance_loss((odds,), (importance,)), guidance_loss((odds,), (1e-20 * importance,))
    )


def test_guidance_has_finite_gradients_with_tokens_gone() -> None:
    odds = torch.randn(B, N, requires_grad=True)
    gone = odds.masked_fill(torch.arange(N) < 2, float("-inf"))
    guidance_loss((odds, gone), (torch.rand(B, N), torch.rand(B, N))).backward()
    assert odds.grad is not None
    assert odds.grad.isfinite().all()
    assert (odds.grad[:, 2:] != 0).all()


def test_an_image_without_any_token_has_nothing_to_rank() -> None:
    odds = torch.randn(B, N, requires_grad=True)
    emptied = torch.cat([odds[:1].masked_fill(torch.ones(1, N) > 0, float("-inf")), odds[1:]])
    loss = guidance_loss((emptied,), (torch.rand(B, N),))
    loss.backward()
    assert loss.isfinite()
    assert odds.grad is not None
    assert odds.grad.isfinite().all()


def test_smoothing_is_for_indices() -> None:
    logits, labels = torch.randn(B, CLASSES), torch.tensor([0, 3, 4])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(logits, labels, 0.1), expected)


def test_without_labels_nothing_of_the_labels_is_needed() -> None:
    weights = LossWeights(classification=0.0, token=0.0)
    losses = dynamicvit_loss(output(), RATIOS, teacher=teacher(), weights=weights)
    assert losses.classification == 0
    assert losses.token == 0
    assert losses.distillation > 0


@pytest.mark.parametrize("part", ["classification", "distillation", "token", "feature", "guidance"])
def test_a_part_with_a_weight_needs_its_input(part: str) -> None:
    alone = LossWeights(**{name: float(name == part) for name in vars(LossWeights())})
    missing = "labels" if part == "classification" else "teacher"
    with pytest.raises(InputError, match=f"the {part} loss has a weight, so {missing} must"):
        dynamicvit_loss(output(), RATIOS, weights=alone)


def test_guidance_needs_a_teacher_that_weighed_the_patches() -> None:
    unweighed = replace(teacher(), importance=None)
    with pytest.raises(InputError, match=r"so teacher\.importance must be given"):
        dynamicvit_loss(
            output(),
            RATIOS,
            labels=torch.tensor([0, 1, 2]),
            teacher=unweighed,
            weights=LossWeights(guidance=1.0),
        )


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"token.*-1"):
        LossWeights(token=-1)
