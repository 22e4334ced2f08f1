"""PyTorch, operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.evaluation.bench.runtimes.base import Job, Runtime
from dynamicvit.evaluation.bench.timer import AUTOCAST, infer


class Eager(Runtime):
    """bf16 is autocast's, as in training and evaluation."""

    name = "eager"
    precisions = tuple(AUTOCAST)

    def check(self, precision: str) -> None:
        """PyTorch is always here."""

    def dense(self, model: DynamicViT) -> nn.Module:
        """The backbone as its own library runs it."""
        return DenseNetwork(model)

    def prepare(self, job: Job) -> Callable[[], object]:
        """The network itself."""
        work = partial(job.network, job.images)
        return partial(infer, work, job.images.device.type, job.precision)
