"""What an image costs: counted on the graph that really ran, and part by part for a schedule.

A MAC is one multiply-add (two FLOPs). Only products of matrices, attention and convolutions count,
as in the papers. Unlike the published numbers, the prediction modules are counted too.

As in the papers, every block counts for all tokens that enter it. Of the last block inference runs
only what the head reads: :func:`executed_macs` says what is left.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from dynamicvit.backbones import Backbone, Hierarchical, backbone_for
from dynamicvit.core.method import Method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import (
    bound_of,
    core_of,
    input_shape,
    own_image_size,
    without_compiler,
)
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.core.spatial import SpatialPrediction
from dynamicvit.errors import InputError
from dynamicvit.layers.maps import Map
from dynamicvit.layers.tokens import Tokens
from dynamicvit.utils.flops import counted_macs, counting

#: No stage: the backbone's own dense network.
DENSE = Schedule((), ())

ImageSize = int | Sequence[int] | None
"""Side of a square image, height and width, or ``None`` for the size the backbone was made for."""

Cost = Callable[[int], int]
"""MACs of a part of the network, by the number of patch tokens that enter it."""

_Module = TypeVar("_Module", bound=nn.Module)


# -------------------------------------------------------------------------------- counted


def count_macs(model: nn.Module, image_size: ImageSize = None) -> int:
    """MACs of one image's inference, counted by torch on the operations that ran.

    A :class:`DynamicViT` is counted on its pruned path with its schedule of the moment, with every
    block whole; any other module as it is. What runs is a copy without weights on the meta device:
    nothing is computed and the model itself is not touched.

    Args:
        model: the network.
        image_size: side of a square image, or height and width, in pixels; by default the size the
            backbone was made for.

    Raises:
        InputError: for an image size that the backbone refuses.
    """

    def answer(network: nn.Module, images: Tensor) -> None:
        inner = core_of(network)
        if isinstance(inner, DynamicViT):
            inner.forward_head(inner.forward_tokens(images))
        else:
            network(images)

    return _counted(model, image_size, answer)


def executed_macs(model: nn.Module, image_size: ImageSize = None) -> int:
    """MACs of one image's inference as it is run: without what the head does not read.

    Args:
        model: see :func:`count_macs`, from which only a :class:`DynamicViT` differs.
        image_size: likewise.

    Raises:
        InputError: for an image size that the backbone refuses.
    """
    return _counted(model, image_size, lambda network, images: network(images))


def _counted(
    model: nn.Module, image_size: ImageSize, run: Callable[[nn.Module, Tensor], object]
) -> int:
    """What torch counts while a copy without weights runs one image."""
    shape = input_shape(model, resolve_image_size(model, image_size))
    twin = _twin(model)
    images = _meta_input(twin, shape)
    return counted_macs(lambda: run(twin, images))


def _twin(model: nn.Module) -> nn.Module:
    return meta_copy(model).eval().requires_grad_(False)


def _meta_input(twin: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """One image or clip without values, in the precision of the weights."""
    weights = (parameter.dtype for parameter in twin.parameters() if parameter.is_floating_point())
    dtype = next(weights, torch.float32)
    return torch.empty(1, *shape, dtype=dtype, device="meta")


def meta_copy(model: _Module) -> _Module:
    """A copy of the module with the shapes of its weights, but not the weights (meta device)."""
    model = without_compiler(model)
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    for module in model.modules():  # a module has a dozen, for hooks: most of a copy's time
        empty_dicts = (v for v in vars(module).values() if type(v) is OrderedDict and not v)
        memo |= {id(value): OrderedDict() for value in empty_dicts}
    return copy.deepcopy(model, memo)


def resolve_image_size(model: nn.Module, image_size: ImageSize = None) -> tuple[int, int]:
    """Height and width in pixels of the images a network gets.

    Args:
        model: the network.
        image_size: side of a square image, or height and width; by default the size the backbone
            was made for.

    Raises:
        InputError: for an image size that the backbone refuses.
    """
    size = own_image_size(model) if image_size is None else image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise InputError(f"an image size is one or two positive whole numbers, got {image_size!r}")
    bound = bound_of(model)
    if bound is not None:  # others are counted, but not pruned: they check their images
        bound.grid(*sides)
    return sides


# -------------------------------------------------------------------------------- by parts


@dataclass(frozen=True)
class Costs:
    """The MACs of a network's parts for one image, by the patch tokens that enter them.

    Attributes:
        num_patches: N, patch tokens of the image.
        num_prefix: P, tokens that are never dropped.
        embed: patch embedding.
        blocks: for each block; prefix tokens that were added count as patch tokens.
        stages: for each stage, what its method does there.
        adds: for each stage, how many prefix tokens its method adds.
        head: pooling and classifier.
        reactivates: whether stages look at bypassed tokens too.
    """

    num_patches: int
    num_prefix: int
    embed: int
    blocks: tuple[Cost, ...]
    stages: tuple[Cost, ...]
    adds: tuple[int, ...]
    head: Cost
    reactivates: bool = False

    @property
    def dense(self) -> int:
        """MACs of one image of which nothing is dropped, nor scored."""
        count = self.num_patches
        return self.embed + sum(block(count) for block in self.blocks) + self.head(count)

    def total(self, schedule: Schedule) -> int:
        """MACs of one image under a schedule with as many stages as were measured."""
        total, held, added = self.embed, self.num_patches, 0
        counts = schedule.kept(self.num_patches)
        at = dict(
            zip(schedule.stages, zip(counts, self.stages, self.adds, strict=True), strict=True)
        )
        back = schedule.restore_before
        again = self.reactivates and schedule.policy == "bypassed"
        for i, block in enumerate(self.blocks):
            held = self.num_patches if i == back else held
            if i in at:
                count, stage, adds = at[i]
                total += stage(self.num_patches if again else held)
                held, added = count, added + adds
            total += block(held + added)
        return total + self.head(held if back is None else self.num_patches)


def schedule_macs(model: nn.Module, schedule: Schedule, image_size: ImageSize = None) -> int:
    """MACs of one image's inference under a schedule, from its parts, without running all of it.

    Args:
        model: a :class:`DynamicViT` (its own schedule is not looked at), or a supported backbone.
        schedule: where and how much to drop; without stages (:data:`DENSE`) the dense network.
        image_size: side of a square image, or height and width, in pixels; by default the size the
            backbone was made for.

    Raises:
        InputError: for an image size that the backbone refuses, or a schedule that does not fit its
            depth.
    """
    costs = costs_of(model, len(schedule.stages), image_size)
    if schedule.stages:
        schedule = schedule.checked(len(costs.blocks))
    return costs.total(schedule)


def costs_of(model: nn.Module, num_stages: int, image_size: ImageSize = None) -> Costs:
    """Measure the parts of a network, each kind in three runs of one image on the meta device.

    Args:
        model: see :func:`schedule_macs`.
        num_stages: how many stages are measured. The methods of a :class:`DynamicViT` with as many
            are measured as they are; else they are taken to be the paper's prediction modules.
        image_size: see :func:`schedule_macs`.
    """
    size = resolve_image_size(model, image_size)
    twin = core_of(_twin(model))
    bound = twin.bound if isinstance(twin, DynamicViT) else backbone_for(twin)
    images = _meta_input(twin, bound.input_shape(size))
    embedded: list[Tokens] = []
    embed = counted_macs(lambda: embedded.append(bound.embed(images)))
    [tokens] = embedded
    if isinstance(twin, DynamicViT) and twin.method.looks_at_motion:
        tokens = replace(tokens, motion=bound.motion(images))

    kinds: dict[object, Cost] = {}

    def held(num_patches: int, added: int = 0) -> Tokens:
        """So many patch tokens, somewhere in the grid, and prefix tokens that were added."""
        if isinstance(tokens, Map):  # of a map that stays whole, so many on the slow path
            return tokens.directed(tokens.kept_index()[:, :num_patches], cheap)
        prefix = tokens.num_prefix + added
        x = tokens.x.new_empty(1, prefix + num_patches, tokens.x.shape[2])
        index = x.new_empty(1, num_patches, dtype=torch.long)
        return replace(tokens, x=x, num_prefix=prefix, added=added, index=index)

    def stage_cost(method: Method, block: int, added: int) -> Cost:
        def run(num_patches: int) -> int:
            came = held(num_patches, added)
            if method.looks_back:
                with counting():  # which is faster
                    came = bound.run(block - 1, came, keep_heads=True)
            if not method.takes_any_schedule:  # it needs a whole grid: as if these were all
                came = replace(came, index=None, grid=(1, num_patches))
            left = num_patches - num_patches // 2  # as few as merging leaves in one round
            return counted_macs(lambda: method.prune(came, left, policy))

        # Token merging treats every second token differently.
        return kinds.setdefault((structure_of(method), added), _fitted(run, step=2))

    def block_cost(i: int) -> Cost:
        cost = _fitted(lambda n: counted_macs(lambda: bound.run(i, held(n))))
        return kinds.setdefault(structure_of(bound.blocks[i]), cost)

    def head_cost(n: int) -> int:
        n = tokens.num_patches if bound.reads_map else n
        read = twin.forward_head if isinstance(twin, DynamicViT) else bound.head
        return counted_macs(lambda: read(bound.finish(replace(held(n), dropped=tokens.patches))))

    methods, policy = _methods(twin, bound, num_stages)
    cheap = _cheap_paths(bound) if isinstance(bound, Hierarchical) else None
    stages = twin.schedule.stages if isinstance(twin, DynamicViT) else ()
    before = stages if len(stages) == num_stages else (0,) * num_stages
    adds = tuple(method.adds for method in methods)
    return Costs(
        num_patches=tokens.num_patches,
        num_prefix=tokens.num_prefix,
        embed=embed,
        blocks=tuple(block_cost(i) for i in range(len(bound.blocks))),
        stages=tuple(
            stage_cost(method, block, sum(adds[:stage]))
            for stage, (method, block) in enumerate(zip(methods, before, strict=True))
        ),
        adds=adds,
        head=_fitted(head_cost),
        reactivates=any(method.reactivates for method in methods),
    )


def structure_of(module: nn.Module) -> tuple[object, ...]:
    """What modules that cost the same have in common: classes, shapes, numbers and names."""
    plain = (bool, int, float, str)
    return tuple(
        (
            type(part),
            *(tuple(weight.shape) for weight in part.parameters(recurse=False)),
            *((key, value) for key, value in vars(part).items() if isinstance(value, plain)),
        )
        for part in module.modules()
    )


def _methods(model: nn.Module, bound: Backbone, num_stages: int) -> tuple[Sequence[Method], Policy]:
    """What happens at each stage, and to the tokens that are dropped there."""
    if isinstance(model, DynamicViT) and len(model.predictors) == num_stages:
        return list(model.methods), model.policy
    with torch.device("meta"):
        if isinstance(bound, Hierarchical):
            return [
                SpatialPrediction(bound.width, bound.eps, {}) for _ in range(num_stages)
            ], "cheap"
        return [PredictionModule(bound.width) for _ in range(num_stages)], "removed"


def _cheap_paths(bound: Hierarchical) -> nn.ModuleDict:
    """One for each block."""
    with torch.device("meta"):
        return nn.ModuleDict({str(i): bound.cheap_path() for i in range(len(bound.blocks))})


def _fitted(count: Callable[[int], int], step: int = 1) -> Cost:
    """The polynomial of degree two through three counts, exact in whole numbers.

    Args:
        count: MACs of a part for so many patch tokens.
        step: between the three; polynomials of even and odd numbers differ if it is 2.
    """

    @cache
    def values(first: int) -> tuple[int, int, int]:
        return count(first), count(first + step), count(first + 2 * step)

    def cost(num_patches: int) -> int:
        first = 1 + (num_patches - 1) % step + step  # with one token some methods do nothing
        steps = (num_patches - first) // step
        low, middle, high = values(first)
        return low + steps * (middle - low) + steps * (steps - 1) // 2 * (high - 2 * middle + low)

    return cost
