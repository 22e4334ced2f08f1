"""Another network as teacher: of any width or family, so its logits are all that can be learned."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import (
    DenseNetwork,
    image_channels,
    input_shape,
    own_image_size,
    segments,
)
from dynamicvit.data.transforms import image_config
from dynamicvit.errors import InputError
from dynamicvit.training.recipe import Recipe
from dynamicvit.utils.tensors import fingerprint


class ExternalTeacher(nn.Module):
    """Answers for a student's images, each shown to the network as it is used to seeing them.

    The network gets the very crops of the student, in its own normalization and at the size that it
    was built for.

    Args:
        network: gives logits ``(B, classes)`` in ``eval()``, or a map of them for a segmentation
            model, and describes itself as timm's models do (``num_classes``, ``pretrained_cfg``).
            It is frozen.
        student: whose images will come.

    Attributes:
        network: the network.
        size: height and width in pixels of the images that it gets.

    Raises:
        InputError: if it has other classes than the student, is for another task, or wants other
            channels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, student: DynamicViT) -> None:
        super().__init__()
        if segments(network) != segments(student):
            tasks = ["segmentation" if segments(each) else "images" for each in (network, student)]
            raise InputError(f"the teacher is for {tasks[0]}, the student for {tasks[1]}")
        _check_alike("classes", getattr(network, "num_classes", None), student.num_classes)
        _check_alike("channels", image_channels(network), image_channels(student))
        clips, taught = (input_shape(each)[:-3] for each in (student, network))
        if clips != taught:
            says = [f"clips of {each[0]} frames" if each else "images" for each in (taught, clips)]
            raise InputError(f"the teacher is for {says[0]}, the student for {says[1]}")
        self.network = network.requires_grad_(False)
        self.size = own_image_size(network)
        mean, std = _normalization(student)
        own_mean, own_std = _normalization(network)
        # The image was x · std + mean; normalized anew, that is one scale and one shift.
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self._alike = torch.equal(mean, own_mean) and torch.equal(std, own_std)
        self.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)``, or a map of them of the network's own size.

        Args:
            images: ``(B, channels, height, width)`` or clips, normalized as the student wants them.
        """
        if images.shape[-2:] != self.size:
            frames = images.flatten(0, -4)
            frames = F.interpolate(frames, self.size, mode="bicubic", antialias=True)
            images = frames.unflatten(0, images.shape[:-3])
        if not self._alike:
            images = images * self.scale + self.shift
        return self.network(images)

    @cached_property
    def fingerprint(self) -> str:
        """Tells one set of weights from another."""
        return fingerprint(self.network.state_dict())


def teacher_for(
    student: DynamicViT, recipe: Recipe, checkpoint: str | Path | None, pretrained: bool
) -> ExternalTeacher | None:
    """The other network that a recipe names, if a loss looks at it.

    Args:
        student: whom it will teach.
        recipe: of the run.
        checkpoint: a file of its weights.
        pretrained: whether it gets timm's weights without one.

    Raises:
        InputError: for weights without a name, and as
            :func:`~dynamicvit.checkpoints.dense.load_dense` and :class:`ExternalTeacher`.
    """
    name = recipe.teacher.model
    if name is None and checkpoint is not None:
        raise InputError(f"teacher checkpoint {checkpoint}: name its network as the teacher")
    if name is None or not recipe.asks_external_teacher:
        return None
    if segments(student) and Path(name).is_dir():
        if checkpoint is not None:
            raise InputError(f"teacher {name} has its own weights: leave {checkpoint} out")
        return ExternalTeacher(DenseNetwork(load(name)).eval(), student)
    return ExternalTeacher(load_dense(name, checkpoint, pretrained=pretrained), student)


def _normalization(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, ``(channels, 1, 1)``."""
    config = image_config(model)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return mean, std


def _check_alike(what: str, taught: int | None, student: int) -> None:
    if taught != student or not student:
        raise InputError(
            f"the teacher has {taught} {what}, the student {student}: take a teacher with the "
            "student's"
        )
