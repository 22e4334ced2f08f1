"""How long a run will take, from a few steps that are timed and undone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import input_shape
from dynamicvit.data import Batch, Loader
from dynamicvit.errors import InputError
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.objective import objective_of
from dynamicvit.training.optimizer import create_optimizer
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.step import Split, Step
from dynamicvit.utils.distributed import Processes

#: Images in a timed step: on a CPU more take as much longer.
_IMAGES = {"cpu": 8}
_MOST = 64
_STEPS = 3
#: Images that are read to time the reading.
_READ = 16


@dataclass(frozen=True)
class Pace:
    """Of one device.

    Attributes:
        step_seconds: of a step, forward, backward and the optimizer's.
        read_seconds: of reading its images; ``None`` without data.
        steps: that were timed.
        images: in each of them.
    """

    step_seconds: float
    read_seconds: float | None
    steps: int
    images: int

    @property
    def seconds(self) -> float:
        """Of a step: what takes longer, as the next images are read meanwhile."""
        return max(self.step_seconds, self.read_seconds or 0.0)


def time_steps(
    model: DynamicViT,
    recipe: Recipe,
    images_a_step: int,
    *,
    at_a_time: int,
    loader: Loader | None = None,
    teacher: ExternalTeacher | None = None,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
) -> Pace:
    """Time a few steps on noise with a copy of the model, and the reading of a few images.

    Args:
        model: not changed.
        recipe: what will be done.
        images_a_step: of this device.
        at_a_time: of these, in one pass.
        loader: of the training images, if there are any.
        teacher: the network that the recipe names, if it does.
        device: where training will run.
        precision: dtype of autocast, or none for full precision.
    """
    device = torch.device(device)
    images = min(at_a_time, _IMAGES.get(device.type, _MOST))
    images += images % 2  # mixup wants pairs
    with torch.random.fork_rng():
        student = copy.deepcopy(model).to(device).train()
        objective = objective_of(student, recipe, teacher, device).to(device)
        step = Step(objective, recipe, Processes(device), precision=precision)
        optimizer = create_optimizer(student, recipe)
        shape = (images, *input_shape(model))
        noise = torch.randn(shape)
        batch = Batch(noise, model.blank_labels(noise)).to(device)

        def run() -> None:
            step.backward(batch, Split(0, 0, images))

        run()
        backward = median(_seconds(run, device) for _ in range(_STEPS))
        update = _seconds(optimizer.step, device)
    return Pace(
        step_seconds=backward * images_a_step / images + update,
        read_seconds=None if loader is None else _reading(loader) * images_a_step,
        steps=_STEPS,
        images=images,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _reading(loader: Loader) -> float:
    """Seconds for an image, by all workers together; they are started and idle before that."""
    few = Loader(loader.data, 1, shuffle=True, seed=loader.seed)
    began, count = time.perf_counter(), 0
    try:
        for _ in few:
            count += 1
            if count == _READ:
                break
    except InputError:  # the run will say which can't be read
        pass
    return (time.perf_counter() - began) / max(1, count) / max(1, loader.num_workers)
