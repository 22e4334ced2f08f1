"""The dense network as a teacher: what it answers, and which patches its answer hangs on."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from dynamicvit.core.method import GivenDecisions
from dynamicvit.core.model import DynamicViT, frames_to_the_caller
from dynamicvit.core.outputs import DenseOutput
from dynamicvit.core.parts import select
from dynamicvit.errors import UntrainedWarning
from dynamicvit.layers.tokens import Tokens


def dense_teacher(model: DynamicViT, *, shared: bool = False) -> DynamicViT:
    """A frozen copy of the backbone as it is now, with the model's stages and nothing learned.

    Ask it by :func:`ask`, :func:`weigh_patches` or :func:`weigh_some`.

    Args:
        model: whose backbone it is.
        shared: take the backbone itself, which is then frozen, in place of a copy.
    """
    schedule = model.schedule
    if schedule.policy == "merged":  # what a patch is worth if it is lost
        schedule = replace(schedule, policy="removed", restore_before=None)
    of = model if shared else copy.deepcopy(model)
    teacher = of.like(of.bound, schedule, GivenDecisions)
    return teacher.eval().requires_grad_(False)


def has_fresh_classifier(model: DynamicViT) -> bool:
    """Whether nobody has trained the classifier: its bias is still 0 everywhere.

    Without a bias, or a classifier, nothing tells.
    """
    bias = getattr(model.get_classifier(), "bias", None)
    return bias is not None and not bias.is_meta and not bool(bias.detach().any())


def warn_if_fresh_classifier(model: DynamicViT) -> None:
    """Warn before a network teaches answers that nobody has taught it."""
    if has_fresh_classifier(model):
        warnings.warn(
            f"the dense teacher's classifier of {model.num_classes} classes is untrained, so its "
            "answers mean nothing: fit the dense model first, as dynamicvit.train does with "
            "labeled images",
            UntrainedWarning,
            stacklevel=frames_to_the_caller(),
        )


def ask(teacher: DynamicViT, images: Tensor | Tokens) -> DenseOutput:
    """What the teacher says of a batch, in inference mode: the losses need no graph of it.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or what ``first_blocks`` gave for them.
    """
    with torch.inference_mode():
        return teacher.forward_dense(images)


def weigh_patches(teacher: DynamicViT, images: Tensor | Tokens) -> DenseOutput:
    """The teacher's dense output, with how much its answer hangs on each patch.

    The importance of a patch at a stage is the size of the derivative of the top class's
    log-probability in the patch's decision there, where nothing is dropped: to first order, how
    far the answer would move if the patch left. It is the derivative that the paper's
    straight-through estimator gives the prediction modules (Section 3.3), but of the dense network
    and without the noise of a draw. It needs no labels and no class token. Not in the paper.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or what ``first_blocks`` gave for them.

    Returns:
        Without gradients; ``importance`` is set.
    """
    with torch.no_grad():
        tokens = images if isinstance(images, Tokens) else teacher.first_blocks(images)
    shape = tokens.patches.shape[:2]
    with torch.enable_grad():
        everything = [
            torch.ones(shape, device=tokens.x.device, requires_grad=True)
            for _ in teacher.schedule.stages
        ]
        output = teacher.forward_masked(tokens, everything)
        answer = output.logits.float().log_softmax(dim=1).amax(dim=1)
        slopes = torch.autograd.grad(answer.sum(), everything)
    patch_logits = output.patch_logits
    return DenseOutput(
        logits=output.logits.detach(),
        features=_plain(output.features.x.detach(), output.features),
        pooled=output.pooled.detach(),
        loss_logits=output.loss_logits.detach(),
        patch_logits=None if patch_logits is None else patch_logits.detach(),
        importance=tuple(slope.abs() for slope in slopes),
    )


def weigh_some(teacher: DynamicViT, images: Tensor | Tokens, chosen: Tensor) -> DenseOutput:
    """The teacher's dense output, with the importance of the patches of some images.

    Weighing takes the teacher's backward pass, as much again as its answer; the ranking of patches
    is learned from fewer images than the answers are.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or what ``first_blocks`` gave for them.
        chosen: ``(B,)`` bool, the images whose patches are weighed.

    Returns:
        As of :func:`weigh_patches`; the importance is zero for the other images.
    """
    with torch.no_grad():
        tokens = images if isinstance(images, Tokens) else teacher.first_blocks(images)
    parts = []
    if chosen.any():
        parts.append(weigh_patches(teacher, select(tokens, chosen)))
    if not chosen.all():
        parts.append(ask(teacher, select(tokens, ~chosen)))
    places = torch.cat([chosen.nonzero(), (~chosen).nonzero()]).squeeze(1).argsort()

    def together(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[places]

    weighed = [part.importance for part in parts if part.importance is not None]
    nothing = tokens.x.new_zeros(tokens.patches.shape[:2], dtype=torch.float32)
    patch_logits = [part.patch_logits for part in parts if part.patch_logits is not None]
    return DenseOutput(
        logits=together([part.logits for part in parts]),
        features=_plain(together([part.features.x for part in parts]), parts[0].features),
        pooled=together([part.pooled for part in parts]),
        loss_logits=together([part.loss_logits for part in parts]),
        patch_logits=together(patch_logits) if patch_logits else None,
        importance=tuple(nothing.masked_scatter(chosen[:, None], stage) for stage in weighed[0])
        if weighed
        else tuple(nothing for _ in teacher.schedule.stages),
    )


def _plain(x: Tensor, tokens: Tokens) -> Tokens:
    """Tokens ``(B, P + N, C)`` of which nothing else needs to be known."""
    return Tokens(x, tokens.num_prefix, tokens.grid)
