"""What a student learns from a teacher's logits, which may be any network's."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

#: From logits ``(B, classes)`` of student and teacher to a scalar.
Distillation = Callable[[Tensor, Tensor], Tensor]


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's class probabilities from the teacher's (Eq. 14).

    Args:
        logits: ``(B, classes)``.
        teacher_logits: likewise.
        temperature: T, by which both are divided: above 1 the unlikely classes weigh more. The
            divergence is multiplied by T², for its gradients shrink by that (Hinton et al.,
            arXiv 1503.02531, Section 2); the paper has 1.
    """
    soft, taught = (each.float() / temperature for each in (logits, teacher_logits))
    return temperature**2 * divergence(soft, taught).mean()


def hard_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the class that the teacher holds likeliest (arXiv 2012.12877, Eq. 3).

    That is how DeiT learns from a convolutional network.

    Args:
        logits: ``(B, classes)``.
        teacher_logits: likewise. Of ones that are not finite there is no likeliest: that gives NaN.
    """
    loss = F.cross_entropy(logits.float(), teacher_logits.argmax(dim=-1))
    return loss.masked_fill(~teacher_logits.isfinite().all(), float("nan"))


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL divergence of each row of class probabilities: ``(..., classes)`` to ``(...)``."""
    return F.kl_div(
        logits.float().log_softmax(dim=-1),
        teacher_logits.float().log_softmax(dim=-1),
        log_target=True,
        reduction="none",
    ).sum(dim=-1)
