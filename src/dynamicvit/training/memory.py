"""How much memory a training step will want, found out with two images before the run."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from dynamicvit.data import Batch
from dynamicvit.macs import resolve_image_size
from dynamicvit.model import DynamicViT
from dynamicvit.networks import image_channels
from dynamicvit.teacher import dense_teacher
from dynamicvit.training import loop
from dynamicvit.training.recipe import Recipe

#: AdamW keeps two averages of every gradient.
_MOMENTS = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a batch is trained on.

    Attributes:
        weights: of backbone and prediction modules.
        teacher: of the dense network.
        averaged: the exponential average of the weights, if the recipe has one.
        gradients: of what learns.
        optimizer: its averages of them.
        activations: what the backward pass needs of the forward pass, for the whole batch.
    """

    weights: int
    teacher: int
    averaged: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(
    model: DynamicViT,
    recipe: Recipe,
    batch_size: int | None = None,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> Memory:
    """What training a batch will hold in memory at its peak.

    Two steps on noise, of one and of two images, are run with the recipe's losses and decisions on
    the device itself, and what autograd keeps is counted, shared memory once. It grows by the same
    amount for every further image. Not counted: what lives during one operation only, the
    libraries' own workspaces, and what the allocator does not give back.

    Args:
        model: moved to the device; its weights stay, its gradients are cleared.
        recipe: what will be done.
        batch_size: images on the device at a time; by default the recipe's batch.
        device: where training will run; attention is computed in another way on each.
        precision: dtype of autocast, or none for full precision.
    """
    batch_size = recipe.batch_size if batch_size is None else batch_size
    modes = model.training, model.sampler, model.leave
    model.to(device).train()
    model.sampler, model.leave = loop.SAMPLERS[recipe.decisions], recipe.leave
    teacher = dense_teacher(model)
    try:
        one, two = (_saved(model, teacher, recipe, n, device, precision) for n in (1, 2))
        # No more than the first batch gives gradients to is ever updated (a shared stem is not).
        gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
    finally:
        model.train(modes[0])
        model.sampler, model.leave = modes[1:]
        model.zero_grad(set_to_none=True)
    weights = _bytes(_tensors(model))
    return Memory(
        weights=weights,
        teacher=_bytes(_tensors(teacher)),
        averaged=weights if recipe.ema else 0,
        gradients=gradients,
        optimizer=_MOMENTS * gradients,
        activations=one + (batch_size - 1) * (two - one),
    )


def _saved(
    model: DynamicViT,
    teacher: DynamicViT,
    recipe: Recipe,
    num_images: int,
    device: torch.device | str,
    precision: torch.dtype | None,
) -> int:
    """The most bytes that autograd held at a time during a step, weights aside."""
    images = torch.randn(num_images, image_channels(model), *resolve_image_size(model))
    batch = Batch(images, torch.zeros(num_images, dtype=torch.long)).to(device)
    saved = _Saved(without=[*_tensors(model), *_tensors(teacher)])
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, _unpack):
        _, losses = loop.step_losses(model, teacher, batch, recipe, precision)
    model.zero_grad(set_to_none=True)
    losses.total.backward()
    return saved.peak


class _Handle:
    """What autograd holds in place of a tensor; autograd drops it when it is done with it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _unpack(handle: _Handle) -> Tensor:
    return handle.tensor


class _Saved:
    """Counts the bytes behind saved tensors, those that several tensors share once.

    Not a mere sum: the graph of the teacher's guidance is gone before the student's begins.
    """

    def __init__(self, without: Iterable[Tensor]) -> None:
        self.peak = self._now = 0
        self._without = {tensor.untyped_storage().data_ptr() for tensor in without}
        self._holders: Counter[int] = Counter()

    def pack(self, tensor: Tensor) -> _Handle:
        storage, handle = tensor.untyped_storage(), _Handle(tensor)
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self._without:
            weakref.finalize(handle, self._release, address, size)
            self._now += size if not self._holders[address] else 0
            self._holders[address] += 1
            self.peak = max(self.peak, self._now)
        return handle

    def _release(self, address: int, size: int) -> None:
        self._holders[address] -= 1
        self._now -= size if not self._holders[address] else 0


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors)
