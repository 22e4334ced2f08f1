"""The dense network as a teacher: what it answers, and which patches its answer hangs on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dynamicvit.model import DenseOutput, DynamicViT, Stem
from dynamicvit.tokens import Tokens


def dense_teacher(model: DynamicViT) -> DynamicViT:
    """A frozen copy of the backbone as it is now, with the model's stages and nothing learned.

    Ask it by :func:`ask`.
    """
    unused = [nn.Identity() for _ in model.schedule.stages]
    teacher = DynamicViT(copy.deepcopy(model.backbone), model.schedule, unused)
    return teacher.eval().requires_grad_(False)


def ask(teacher: DynamicViT, images: Tensor | Stem, *, importance: bool = False) -> DenseOutput:
    """What the teacher says of a batch, at the least cost: the losses need no graph of it.

    Args:
        teacher: of :func:`dense_teacher`.
        images: ``(B, channels, height, width)``, or their stem.
        importance: whether to weigh the patches too (:func:`weigh_patches`), which takes the
            teacher's backward pass as well.
    """
    if importance:
        return weigh_patches(teacher, images)
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
