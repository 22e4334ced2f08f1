"""How much memory a training step will want, found out before the run with two images."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import input_shape
from dynamicvit.training.budgets import Budgets
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.objective import TrainingObjective, objective_of
from dynamicvit.training.recipe import Recipe

#: AdamW keeps two averages of every gradient.
_MOMENTS = 2

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a batch is trained on.

    Attributes:
        weights: of backbone and prediction modules.
        teacher: of the dense network and of another that teaches.
        averaged: the weights that are saved in place of those that learn, if the recipe has such.
        gradients: of what learns.
        optimizer: its averages of them.
        activations: the rest, for the whole batch: above all what the backward pass needs of the
            forward pass.
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
    teacher: ExternalTeacher | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> Memory:
    """What training a batch will hold in memory at its peak.

    Steps on noise, of one and of two images, are run with the recipe's losses and decisions on the
    device itself, and every tensor that is alive at a time is counted, shared memory once. It grows
    by the same amount for every further image. Not counted: the libraries' own workspaces, and what
    the allocator holds and does not use. The process's peak on Linux is found within a fifth
    (tests/training/test_plan.py).

    Args:
        model: moved to the device; its weights stay, its gradients are taken off.
        recipe: what will be done.
        batch_size: images on the device at a time; by default the recipe's batch.
        teacher: the network that the recipe names, if it does; moved to the device.
        device: where training will run; attention is computed in another way on each.
        precision: dtype of autocast, or none for full precision.
    """
    batch_size = recipe.batch_size if batch_size is None else batch_size
    was_training, learned = model.training, [p.requires_grad for p in model.parameters()]
    model.to(device).train()
    student = model
    if recipe.budgets is not None:  # the greatest needs the most
        student = model.at(Budgets(model, *recipe.budgets).schedule(recipe.budgets[1]))
        recipe = recipe.model_copy(update={"budgets": None})
    objective = objective_of(student, recipe, teacher, device).to(device)
    try:
        # The first makes the gradients, which are there from then on.
        _, one, two = (_held(objective, n, device, precision) for n in (1, 1, 2))
        gradients = _bytes(_gradients(model))
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
        for parameter, learns in zip(model.parameters(), learned, strict=True):
            parameter.requires_grad_(learns)
    weights, own = _bytes(_tensors(model)), {id(tensor) for tensor in _tensors(model)}
    averaged = _bytes(_tensors(model.predictors)) if recipe.freeze_backbone else weights
    return Memory(
        weights=weights,
        teacher=_bytes(t for t in _teachers_tensors(objective) if id(t) not in own),
        averaged=averaged if recipe.ema or recipe.interpolate < 1 else 0,
        gradients=gradients,
        optimizer=_MOMENTS * gradients,
        activations=one + (batch_size - 1) * (two - one),
    )


def available_memory(device: torch.device | str) -> int:
    """Bytes that are free on a device; of the CPU those that its container, if any, leaves."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit, used = ((_CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def _held(
    objective: TrainingObjective,
    num_images: int,
    device: torch.device | str,
    precision: torch.dtype | None,
) -> int:
    """The most bytes that a step on noise needed at a time, beside what was there before."""
    model = objective.model
    images = torch.randn(num_images, *input_shape(model))
    images = images.to(device)
    targets = model.blank_labels(images)
    there = [*_tensors(model), *_teachers_tensors(objective), *_gradients(model), images]
    autocast = torch.autocast(images.device.type, precision, enabled=precision is not None)
    with _Held(there) as held:
        with autocast:
            _, losses = objective.with_output(images, targets)
        losses.total.backward()
    return held.peak


class _Held(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, memory that several share once."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in there)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and look at what came out."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._now += storage.nbytes()
            weakref.finalize(storage, self._release, storage.nbytes())
            self.peak = max(self.peak, self._now)

    def _release(self, size: int) -> None:
        self._now -= size


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _teachers_tensors(objective: TrainingObjective) -> list[Tensor]:
    return [tensor for each in objective.teachers for tensor in _tensors(each)]


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors)
