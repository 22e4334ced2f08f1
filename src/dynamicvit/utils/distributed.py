"""The processes that share one run: alone, or started by torchrun or ``accelerate launch``.

What differs between one process and many is here, in a few verbs; what a run does is written once.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.utils.precision import AUTOCAST, worthwhile

#: What ``accelerate launch`` can ask for and is not supported: its flag, and its name.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
#: dtypes of autocast by what ``accelerate launch`` says; full precision has none.
_PRECISIONS = {"no": None, **AUTOCAST}


class Processes:
    """One process alone: nothing to share out, nothing to add up.

    Attributes:
        rank: which of them this one is.
        count: how many there are.
        device: where this one computes.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def equalize(self, module: nn.Module) -> None:
        """Give each process the main one's weights."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the processes (DDP)."""
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Passes of a wrapped module that leave the averaging to a later one."""
        del module
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them; without gradients."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """Plain values of all processes, by rank, in each of them."""
        return [value]

    def close(self) -> None:
        """Nothing more will be shared."""


class _Launched(Processes):
    """Several, on Accelerate."""

    def __init__(self, device: torch.device | str) -> None:
        # Imported here: one process alone needs nothing of it.
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # Not every weight learns from every loss: without one, its gradient never comes.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = Accelerator(
            cpu=torch.device(device).type == "cpu",
            mixed_precision="no",  # autocast is ours, around teacher and student alike
            kwargs_handlers=[unused],
        )
        super().__init__(self._accelerator.device)
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes

    def equalize(self, module: nn.Module) -> None:
        from accelerate.utils import broadcast

        broadcast([value.data for value in module.state_dict().values()])

    def wrap(self, module: nn.Module) -> nn.Module:
        return self._accelerator.prepare_model(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        return self._accelerator.no_sync(module)

    def sum(self, values: Tensor) -> Tensor:
        return cast(Tensor, self._accelerator.reduce(values.detach(), "sum"))

    def gather(self, value: Any) -> list[Any]:
        from accelerate.utils import gather_object

        return gather_object([value])

    def close(self) -> None:
        self._accelerator.end_training()


def launched_processes(device: torch.device | str = "cpu") -> Processes:
    """The processes that a launcher started, or this one alone.

    Args:
        device: where to compute; of several GPUs each process has its own.

    Raises:
        InputError: if ``accelerate launch`` asks for DeepSpeed, FSDP or Megatron-LM.
    """
    for flag, name in _ENGINES.items():
        if os.environ.get(flag, "false").lower() in ("true", "1", "yes"):
            raise InputError(f"{name} is not supported: launch with data parallelism (DDP)")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(device) if count == 1 else _Launched(device)


def launched_precision(
    precision: torch.dtype | None, device: torch.device | str
) -> torch.dtype | None:
    """The dtype of autocast: the given one, else what ``accelerate launch`` asks for.

    ``None`` where the device would only emulate it; a warning in the log says so.

    Raises:
        InputError: for fp16 on a CPU, or what autocast doesn't have.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision is None and asked not in _PRECISIONS:
        raise InputError(f"mixed precision is one of {', '.join(_PRECISIONS)}, got {asked!r}")
    precision = _PRECISIONS[asked] if precision is None else precision
    if precision is torch.float16 and torch.device(device).type == "cpu":
        raise InputError("fp16 needs a GPU: on a CPU take bf16 or fp32")
    return worthwhile(precision, device)
