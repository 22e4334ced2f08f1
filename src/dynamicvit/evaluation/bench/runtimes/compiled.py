"""PyTorch, compiled by ``torch.compile`` for one shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType

import torch
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench.runtimes.base import Job, Runtime
from dynamicvit.evaluation.bench.timer import AUTOCAST, infer
from dynamicvit.export.package import has_compiler


class Compiled(Runtime):
    """With frozen weights, which saves autocast their casts; on a GPU with CUDA graphs."""

    name = "compile"
    precisions = tuple(AUTOCAST)

    def check(self, precision: str) -> None:
        """See to it that there is a C++ compiler, which GPUs need too.

        Raises:
            InputError: if there is none.
        """
        if not has_compiler():
            raise InputError(
                "torch.compile needs a C++ compiler, and g++ is not installed; the other runtimes "
                "need none"
            )

    def prepare(self, job: Job) -> Callable[[], object]:
        """The network, compiled at the first call."""
        kind = job.images.device.type
        # Mode "reduce-overhead" is this option, and excludes others.
        options = {"freezing": True, "triton.cudagraphs": kind == "cuda"}
        compiled = torch.compile(with_code_of_its_own(job.network), dynamic=False, options=options)
        return partial(infer, partial(compiled, job.images), kind, job.precision)


def with_code_of_its_own(network: nn.Module) -> Callable[[Tensor], object]:
    """The network as a function for the compiler.

    The compiler counts what it has compiled for a piece of code, and after eight networks or batch
    sizes that share theirs it goes on uncompiled.
    """

    def run(images: Tensor) -> object:
        return network(images)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)
