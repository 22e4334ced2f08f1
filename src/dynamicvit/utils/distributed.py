"""The processes that share one run: alone, or started by torchrun or ``accelerate launch``.

What differs between one process and many is here, in a few verbs; what a run does is written once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.utils.precision import AUTOCAST

if TYPE_CHECKING:
    from dynamicvit.core.model import DynamicViT

T = TypeVar("T")

#: What ``accelerate launch`` can ask for that is not done here: its flag, and its name.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
_FSDP = "ACCELERATE_USE_FSDP"
#: What it can ask of FSDP: its variable, the values that are what is done, and what to do instead.
_FSDP_SETTINGS = {
    "FSDP_SHARDING_STRATEGY": (("FULL_SHARD", "1"), "only FULL_SHARD is done here"),
    "FSDP_RESHARD_AFTER_FORWARD": (("true", "FULL_SHARD", "1"), "only true is done here"),
    "FSDP_OFFLOAD_PARAMS": (("false",), "weights can't be offloaded here"),
    "FSDP_ACTIVATION_CHECKPOINTING": (("false",), "take --grad-checkpointing"),
}
_PRECISIONS = {"no": None, **AUTOCAST}


class Processes:
    """One process alone: nothing to share out, nothing to add up.

    Attributes:
        rank: which of them this one is.
        count: how many there are.
        holders: over how many of them the weights that learn are spread.
        device: where this one computes.
    """

    rank = 0
    count = 1
    holders = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def equalize(self, module: nn.Module) -> None:
        """Give each process the main one's weights."""

    def student(self, model: DynamicViT) -> DynamicViT:
        """What learns in a model's place: itself, or a twin of which each process has a part."""
        return model

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients summed over the processes, divided by their number."""
        return module

    def run(self, student: nn.Module, function: Callable[..., T], *args: Any) -> T:
        """Call a function that uses the weights of :meth:`student`."""
        del student
        return function(*args)

    def whole(self, tree: T, *, everywhere: bool = True) -> T:
        """State dicts and the like, their tensors whole: in each process, or in the main one."""
        del everywhere
        return tree

    def parts(self, tensors: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whole tensors by name, as those are that they will be copied into."""
        del like
        return tensors

    @contextmanager
    def whole_network(self, network: nn.Module, model: DynamicViT) -> Iterator[nn.Module]:
        """A student, or its average, as a network to call: itself, or the model with its weights.

        The model is the one that :meth:`student` was given.
        """
        del model
        yield network

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Forward and backward passes of a wrapped module that leave the summing to a later one."""
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
        # Imported here: alone nothing of it is needed.
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # Not every weight learns from every loss: without one, its gradient never comes.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        with _unset(_FSDP):  # sharding is ours, too; Accelerate's plugin for it wants a GPU
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


class _Sharded(_Launched):
    """Several, of which each holds a part of weights, gradients, moments and averages (FSDP)."""

    def __init__(self, device: torch.device | str) -> None:
        super().__init__(device)
        from torch.distributed.device_mesh import init_device_mesh

        from dynamicvit.training import sharding

        self._sharding = sharding
        self._mesh = init_device_mesh(self.device.type, (self.count,))
        self.holders = self.count

    def student(self, model: DynamicViT) -> DynamicViT:
        return self._sharding.shard(model, self._mesh)

    def wrap(self, module: nn.Module) -> nn.Module:
        return module  # its gradients are summed where they arise

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()  # sums that wait would wait whole, in each process

    def run(self, student: nn.Module, function: Callable[..., T], *args: Any) -> T:
        return self._sharding.run_together(student, function, *args)

    def whole(self, tree: T, *, everywhere: bool = True) -> T:
        return self._sharding.whole(tree, keep=everywhere or self.is_main)

    def parts(self, tensors: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._sharding.parts(tensors, like)

    @contextmanager
    def whole_network(self, network: nn.Module, model: DynamicViT) -> Iterator[nn.Module]:
        model.load_state_dict(self.whole(network.state_dict()))
        try:
            yield model.to(self.device)
        finally:
            model.cpu()


def launched_processes(device: torch.device | str = "cpu", *, sharded: bool = False) -> Processes:
    """The processes that a launcher started, or this one alone.

    Args:
        device: where to compute; of several GPUs each process has its own.
        sharded: spread what training holds over them (FSDP), as ``accelerate launch --use_fsdp``
            asks, too.

    Raises:
        InputError: if the launcher asks for what is not done here, or one process is to be sharded.
    """
    sharded = sharded or _is_set(_FSDP)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if sharded and count == 1:
        raise InputError(
            "one process has nobody to share its weights with: start several with torchrun or "
            "accelerate launch, or leave --shard (--use_fsdp) out"
        )
    for name, (values, instead) in _FSDP_SETTINGS.items() if sharded else ():
        wanted = os.environ.get(name) or values[0]
        if wanted.lower() not in [value.lower() for value in values]:
            raise InputError(f"{name.lower()} {wanted}: {instead}")
    asked = [name for flag, name in _ENGINES.items() if _is_set(flag)]
    if asked and torch.device(device).type == "cpu":
        raise InputError(
            f"{asked[0]} does nothing on a CPU, though Accelerate would not say so: leave it out"
        )
    if asked:
        raise InputError(f"{asked[0]} is not supported: launch with DDP or FSDP (--use_fsdp)")
    if count == 1:
        return Processes(device)
    return _Sharded(device) if sharded else _Launched(device)


def launched_precision(
    precision: torch.dtype | None, device: torch.device | str
) -> torch.dtype | None:
    """The dtype of autocast: the given one, else what ``accelerate launch`` asks for.

    Raises:
        InputError: for fp16 on a CPU, or what autocast doesn't have.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision is None and asked not in _PRECISIONS:
        raise InputError(f"mixed precision is one of {', '.join(_PRECISIONS)}, got {asked!r}")
    precision = _PRECISIONS[asked] if precision is None else precision
    if precision is torch.float16 and torch.device(device).type == "cpu":
        raise InputError("fp16 needs a GPU: on a CPU take bf16 or fp32")
    return precision


@contextmanager
def _unset(flag: str) -> Iterator[None]:
    was = os.environ.pop(flag, None)
    try:
        yield
    finally:
        if was is not None:
            os.environ[flag] = was


def _is_set(flag: str) -> bool:
    return os.environ.get(flag, "false").lower() in ("true", "1", "yes")
