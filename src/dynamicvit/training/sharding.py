"""Weights in parts, one for each process: torch's FSDP, block by block.

A twin of the model learns; the model itself waits whole in the host's memory, and takes the twin's
weights where they are evaluated, saved or given back. So nothing but training meets a weight that
is not whole.

It is torch's own ``fully_shard`` rather than Accelerate's preparation, which leaves a model on a
CPU as it is without a word, and whose hooks would not fire: the adapters run the pieces of a block,
they never call it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from dynamicvit.backbones import Heads
    from dynamicvit.core.model import DynamicViT
    from dynamicvit.layers.tokens import Tokens

T = TypeVar("T")


def shard(model: DynamicViT, mesh: DeviceMesh) -> DynamicViT:
    """A twin to train, of each of whose weights every process of the mesh holds a part.

    The weights of a block are put together when it runs, forward and backward, and its gradients
    summed and cut up behind it; those outside the blocks (embedding, prediction modules, head: a
    fiftieth of a ViT-H) stay together from the forward pass to the end of the backward one.
    Nothing of the twin runs but under :func:`run_together`.

    Args:
        model: moved to the host's memory; the same in all processes.
        mesh: of one dimension, over the processes that share the weights.
    """
    twin = copy.deepcopy(model.cpu())
    for block in twin.blocks:
        _shard(block, mesh)
    _shard(twin, mesh)
    adapter = twin._adapter = copy.copy(twin._adapter)
    blocks, run_block = twin.blocks, adapter.run_block

    def run_block_together(
        backbone: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> tuple[Tensor, Heads | None]:
        seen: list[Heads | None] = []

        # FSDP watches the tokens alone: the block's backward pass begins and ends with them.
        def run(x: Tensor) -> Tensor:
            out, heads = run_block(backbone, depth, replace(tokens, x=x), position, queries)
            seen.append(heads)
            if x.shape[1] == 0:  # nothing was computed, but the others wait for its gradients
                out = out + sum(weight.sum() * 0 for weight in blocks[depth].parameters())
            return out

        return run_together(blocks[depth], run, tokens.x), seen.pop()

    adapter.run_block = run_block_together
    return twin


def run_together(module: nn.Module, function: Callable[..., T], *args: Any) -> T:
    """Call a function that uses the weights of a sharded module, whole while it runs.

    Every process of the mesh calls it as often as the others.
    """
    return module.run_together(function, *args)


def whole(tree: T, keep: bool = True) -> T:
    """State dicts and the like with their tensors put together, in the host's memory.

    Every process of the mesh calls it.

    Args:
        tree: of dicts, lists and tuples; what is not sharded stays as it is.
        keep: whether this process wants it; without, it only gives its parts, and gets nothing
            that takes memory.
    """

    def put_together(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.detach().full_tensor()
        return tensor.cpu() if keep else tensor.new_empty(0)

    return tree_map(put_together, tree)


def parts(tensors: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Of whole tensors this process's parts, for a state dict.

    Args:
        tensors: by name, whole in each process.
        like: what they will be copied into. What is not sharded there, or of another shape, stays
            as it is.
    """
    return {name: _part(tensor, like.get(name)) for name, tensor in tensors.items()}


def _shard(module: nn.Module, mesh: DeviceMesh) -> None:
    module.run_together = _call
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, run_together.__name__)


def _call(function: Callable[..., T], *args: Any) -> T:
    return function(*args)


def _part(tensor: Any, like: Any) -> Any:
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device, like.dtype)
    # Each process has read all of it: nobody need send anything.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
