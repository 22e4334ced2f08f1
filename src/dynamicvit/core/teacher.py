"""The dense network as a teacher: what it answers, and which patches its answer hangs on."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DenseOutput, DynamicViT, Stem
from dynamicvit.layers.tokens import Tokens


def dense_teacher(model: DynamicViT) -> DynamicViT:
    """A frozen copy of the backbone as it is now, with the model's stages and nothing learned.

    Ask it by :func:`ask`, :func:`weigh_patches` or :func:`weigh_some`.
    """
    unused = [nn.Identity() for _ in model.schedule.stages]
    schedule = replace(model.schedule, policy="removed")  # what a patch is worth if it is lost
    teacher = DynamicViT(copy.deepcopy(model.backbone), schedule, unused)
    return teacher.eval().requires_grad_(False)


def ask(teacher: DynamicViT, images: Tensor | Stem) -> DenseOutput:
    """What the teacher says of a batch, in inference mode: the losses need no graph of it.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or their stem.
    """
    with torch.inference_mode():
        return teacher.forward_dense(images)


def weigh_patches(teacher: DynamicViT, images: Tensor | Stem) -> DenseOutput:
    """The teacher's dense output, with how much its answer hangs on each patch.

    The importance of a patch at a stage is the size of the derivative of the top class's
    log-probability in the patch's decision there, where nothing is dropped: to first order, how
    far the answer would move if the patch left. It is the derivative that the paper's
    straight-through estimator gives the prediction modules (Section 3.3), but of the dense network
    and without the noise of a draw. It needs no labels and no class token. Not in the paper.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or their stem.

    Returns:
        Without gradients; ``importance`` is set.
    """
    with torch.no_grad():
        stem = images if isinstance(images, Stem) else teacher.stem(images)
    shape = stem.tokens.patches.shape[:2]
    with torch.enable_grad():
        everything = [
            torch.ones(shape, device=stem.tokens.x.device, requires_grad=True)
            for _ in teacher.schedule.stages
        ]
        output = teacher.forward_masked(stem, everything)
        answer = output.logits.float().log_softmax(dim=-1).amax(dim=-1)
        slopes = torch.autograd.grad(answer.sum(), everything)
    patch_logits = output.patch_logits
    return DenseOutput(
        logits=output.logits.detach(),
        features=Tokens(output.features.x.detach(), output.features.num_prefix),
        pooled=output.pooled.detach(),
        loss_logits=output.loss_logits.detach(),
        patch_logits=None if patch_logits is None else patch_logits.detach(),
        importance=tuple(slope.abs() for slope in slopes),
    )


def weigh_some(teacher: DynamicViT, images: Tensor | Stem, chosen: Tensor) -> DenseOutput:
    """The teacher's dense output, with the importance of the patches of some images.

    Weighing takes the teacher's backward pass, as much again as its answer; the ranking of patches
    is learned from fewer images than the answers are.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or their stem.
        chosen: ``(B,)`` bool, the images whose patches are weighed.

    Returns:
        As of :func:`weigh_patches`; the importance is zero for the other images.
    """
    with torch.no_grad():
        stem = images if isinstance(images, Stem) else teacher.stem(images)
    parts = []
    if chosen.any():
        parts.append(weigh_patches(teacher, _of(stem, chosen)))
    if not chosen.all():
        parts.append(ask(teacher, _of(stem, ~chosen)))
    places = torch.cat([chosen.nonzero(), (~chosen).nonzero()]).squeeze(1).argsort()

    def together(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[places]

    weighed = [part.importance for part in parts if part.importance is not None]
    nothing = stem.tokens.x.new_zeros(stem.tokens.patches.shape[:2], dtype=torch.float32)
    patch_logits = [part.patch_logits for part in parts if part.patch_logits is not None]
    return DenseOutput(
        logits=together([part.logits for part in parts]),
        features=Tokens(
            together([part.features.x for part in parts]), parts[0].features.num_prefix
        ),
        pooled=together([part.pooled for part in parts]),
        loss_logits=together([part.loss_logits for part in parts]),
        patch_logits=together(patch_logits) if patch_logits else None,
        importance=tuple(nothing.masked_scatter(chosen[:, None], stage) for stage in weighed[0])
        if weighed
        else tuple(nothing for _ in teacher.schedule.stages),
    )


def _of(stem: Stem, chosen: Tensor) -> Stem:
    """The stem of the chosen images ``(B,)``; nothing has been dropped in it yet."""
    return replace(stem, tokens=stem.tokens.with_x(stem.tokens.x[chosen]))
