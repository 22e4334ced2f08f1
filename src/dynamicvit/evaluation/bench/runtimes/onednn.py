"""PyTorch with its float32 linear layers run by oneDNN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from dynamicvit.evaluation.bench.runtimes.base import Job, Runtime
from dynamicvit.evaluation.bench.timer import infer
from dynamicvit.layers.onednn import check_onednn, use_onednn


class OneDNN(Runtime):
    """Eager mode; autocast's bfloat16 is oneDNN's anyway."""

    name = "onednn"
    precisions = ("fp32",)

    def check(self, precision: str) -> None:
        """See to it that PyTorch can.

        Raises:
            InputError: if it can't.
        """
        check_onednn()

    def why_not(self, precision: str, device_type: str) -> str | None:
        """It is for CPUs."""
        if device_type != "cpu":
            return f"{self.name} computes on the CPU"
        return super().why_not(precision, device_type)

    def prepare(self, job: Job) -> Callable[[], object]:
        """A copy of the network with other layers; the weights are the same."""
        shared = {id(weight): weight for weight in (*job.network.parameters(),)}
        network = copy.deepcopy(job.network, shared)
        use_onednn(network)
        return partial(infer, partial(network, job.images), job.images.device.type, job.precision)
