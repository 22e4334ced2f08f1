"""Learning from logits: each loss against its formula, and what a temperature does to gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dynamicvit.core.losses import distillation_loss, hard_distillation_loss

B, CLASSES = 3, 5
GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = 2 * torch.randn(2, B, CLASSES, generator=GENERATOR)


def by_hand(temperature: float) -> float:
    """T² · mean over images of Σ p ln(p / q), in double precision and without torch."""
    total = 0.0
    for ours, theirs in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        q, p = ([math.exp(logit / temperature) for logit in row] for row in (ours, theirs))
        q, p = [each / sum(q) for each in q], [each / sum(p) for each in p]
        total += sum(each * math.log(each / other) for each, other in zip(p, q, strict=True))
    return temperature**2 * total / B


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_divergence_of_softened_probabilities(temperature: float) -> None:
    loss = distillation_loss(STUDENT, TEACHER, temperature)
    assert loss.item() == pytest.approx(by_hand(temperature), rel=1e-5)


def test_at_temperature_1_it_is_the_released_loss() -> None:
    logs = STUDENT.log_softmax(dim=1), TEACHER.log_softmax(dim=1)
    released = F.kl_div(*logs, log_target=True, reduction="batchmean")
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER), released)
    nearly = distillation_loss(STUDENT, TEACHER, 1 + 1e-4)
    torch.testing.assert_close(nearly, released, rtol=1e-3, atol=0)
    assert not math.isclose(distillation_loss(STUDENT, TEACHER, 2.0).item(), released.item())


@pytest.mark.parametrize("temperature", [30.0, 300.0])
def test_gradients_don_t_shrink_with_the_temperature(temperature: float) -> None:
    """At a high one they are the distance of the centered logits (arXiv 1503.02531, Eq. 4)."""
    logits = STUDENT.clone().requires_grad_()
    distillation_loss(logits, TEACHER, temperature).backward()
    centered = [each - each.mean(dim=1, keepdim=True) for each in (STUDENT, TEACHER)]
    expected = (centered[0] - centered[1]) / (CLASSES * B)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=0.1 * expected.abs().max())


def test_the_hard_loss_is_cross_entropy_with_the_likeliest_class() -> None:
    best = TEACHER.argmax(dim=1)
    expected = -STUDENT.log_softmax(dim=1)[torch.arange(B), best].mean()
    torch.testing.assert_close(hard_distillation_loss(STUDENT, TEACHER), expected)
    rescaled = 3 * TEACHER - 1  # other probabilities, the same order
    torch.testing.assert_close(hard_distillation_loss(STUDENT, rescaled), expected)
    assert distillation_loss(STUDENT, rescaled) != distillation_loss(STUDENT, TEACHER)


@pytest.mark.parametrize("loss", [distillation_loss, hard_distillation_loss])
def test_a_teacher_without_an_answer_is_noticed(loss) -> None:
    broken = TEACHER.clone()
    broken[1, 2] = math.nan
    assert loss(STUDENT, broken).isnan()


@pytest.mark.parametrize("loss", [distillation_loss, hard_distillation_loss])
def test_what_a_teacher_says_in_inference_mode_can_be_learned(loss) -> None:
    with torch.inference_mode():
        said = TEACHER + 0.0
    logits = STUDENT.clone().requires_grad_()
    loss(logits, said).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
