"""What an image costs: counted on the graph that really ran, and in closed form for a schedule.

A MAC is one multiply-add (two FLOPs). Only products of matrices, attention and convolutions count,
as in the papers. Unlike the published numbers, the prediction modules are counted too.

As in the papers, every block counts for all tokens that enter it. Of the last block inference runs
only what the head reads: :func:`executed_macs` says what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynamicvit.backbones import adapter_for
from dynamicvit.core.method import Crowd, Reduction, Scored, reduction_of
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import (
    backbone_of,
    core_of,
    image_channels,
    own_image_size,
    supported,
    without_compiler,
)
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError

#: No stage: the backbone's own dense network.
DENSE = Schedule((), ())

#: Keep ratios for a budget are whole multiples of this.
RATIO_STEP = 1e-4

ImageSize = int | Sequence[int] | None
"""Side of a square image, height and width, or ``None`` for the size the backbone was made for."""

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
            inner.forward_head(inner.forward_features(images))
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
    height, width = resolve_image_size(model, image_size)
    twin = meta_copy(model).eval().requires_grad_(False)
    weights = (parameter.dtype for parameter in twin.parameters() if parameter.is_floating_point())
    channels = image_channels(model)
    # The flop counter misses fused attention on the CPU in some releases of torch. The math
    # backend takes attention apart into matrix products, which every release counts.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        dtype = next(weights, torch.float32)
        run(twin, torch.empty(1, channels, height, width, dtype=dtype, device="meta"))
    return counter.get_total_flops() // 2


def meta_copy(model: _Module) -> _Module:
    """A copy of the module with the shapes of its weights, but not the weights (meta device)."""
    model = without_compiler(model)
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
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
    backbone = backbone_of(model)
    size = own_image_size(model) if image_size is None else image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise InputError(f"an image size is one or two positive whole numbers, got {image_size!r}")
    adapter = supported(backbone)
    if adapter is not None:  # others are counted, but not pruned: they check their images
        adapter.grid_size(backbone, *sides)
    return sides


# -------------------------------------------------------------------------------- closed form


@dataclass(frozen=True)
class Costs:
    """The MACs of a network's parts for one image, by the tokens that enter them.

    Attributes:
        num_patches: N, patch tokens of the image.
        num_prefix: P, tokens that are never dropped.
        width: C.
        embed: patch embedding.
        block_token: for each block, what one token costs in its linear layers.
        block_pair: for each block, what one pair of tokens costs in attention.
        reductions: for each stage, what happens to the tokens there, which has its own cost.
        heads: for each stage, number and width of the heads of the block before it; zeros where
            no reduction asks.
        head: pooling and classifier, the part that does not depend on the tokens left.
        head_token: pooling, for each patch token left.
    """

    num_patches: int
    num_prefix: int
    width: int
    embed: int
    block_token: tuple[int, ...]
    block_pair: tuple[int, ...]
    reductions: tuple[Reduction, ...]
    heads: tuple[tuple[int, int], ...]
    head: int
    head_token: int

    def total(self, schedule: Schedule) -> int:
        """MACs of one image under a schedule with as many stages as there are reductions."""
        total = self.embed + self.head
        held, prefix = self.num_patches, self.num_prefix
        kept = dict(zip(schedule.stages, schedule.kept(self.num_patches), strict=True))
        reductions = iter(zip(self.reductions, self.heads, strict=True))
        for block, (token, pair) in enumerate(zip(self.block_token, self.block_pair, strict=True)):
            if block in kept:
                reduction, heads = next(reductions)
                total += reduction.macs(Crowd(held, prefix, self.width, *heads))
                held, prefix = kept[block], prefix + reduction.adds
            tokens = prefix + held
            total += token * tokens + pair * tokens**2
        return total + self.head_token * held


def schedule_macs(model: nn.Module, schedule: Schedule, image_size: ImageSize = None) -> int:
    """MACs of one image's inference under a schedule, from the layers' shapes, without running.

    Args:
        model: a :class:`DynamicViT` (its own schedule is not looked at), or a supported backbone.
        schedule: where and how much to drop; without stages (:data:`DENSE`) the dense network.
        image_size: side of a square image, or height and width, in pixels; by default the size the
            backbone was made for.

    Raises:
        UnsupportedBackboneError: if no adapter covers the backbone.
        InputError: for a stage outside the depth, or an image size that the backbone refuses.
    """
    return costs_of(model, len(schedule.stages), image_size).total(_fitting(model, schedule))


def costs_of(model: nn.Module, num_stages: int, image_size: ImageSize = None) -> Costs:
    """The costs of a network's parts, for any schedule with ``num_stages`` stages.

    Args:
        model: a :class:`DynamicViT`, or a supported backbone.
        num_stages: how many reductions are counted. Those of a :class:`DynamicViT` with as many
            are measured as they are; else they are taken to be the paper's prediction modules.
        image_size: see :func:`schedule_macs`.
    """
    backbone = backbone_of(model)
    adapter = adapter_for(backbone)
    height, width = resolve_image_size(model, image_size)
    rows, columns = adapter.grid_size(backbone, height, width)
    blocks = [adapter.block_macs(backbone, depth) for depth in range(len(adapter.blocks(backbone)))]
    head, head_token = adapter.head_macs(backbone)
    reductions = _reductions(model, num_stages)
    heads = [(0, 0)] * num_stages
    inner = core_of(model)
    if isinstance(inner, DynamicViT) and any(reduction.looks_back for reduction in reductions):
        heads = [_heads_before(backbone, stage, blocks) for stage in inner.schedule.stages]
    return Costs(
        num_patches=rows * columns,
        num_prefix=adapter.num_prefix_tokens(backbone),
        width=adapter.width(backbone),
        embed=adapter.embed_macs(backbone, height, width),
        block_token=tuple(token for token, _ in blocks),
        block_pair=tuple(pair for _, pair in blocks),
        reductions=reductions,
        heads=tuple(heads),
        head=head,
        head_token=head_token,
    )


def _reductions(model: nn.Module, num_stages: int) -> tuple[Reduction, ...]:
    """What happens at each stage."""
    inner = core_of(model)
    if isinstance(inner, DynamicViT) and len(inner.predictors) == num_stages:
        policy = inner.schedule.policy
        return tuple(reduction_of(predictor, policy) for predictor in inner.predictors)
    if num_stages == 0:
        return ()
    backbone = backbone_of(model)
    with torch.device("meta"):
        predictor = PredictionModule(adapter_for(backbone).width(backbone))
    return (Scored(predictor),) * num_stages


def _heads_before(
    backbone: nn.Module, stage: int, blocks: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Number and width of the heads in the block before a stage."""
    number = adapter_for(backbone).num_heads(backbone, stage - 1)
    _, pair = blocks[stage - 1]
    return number, pair // 2 // number


# -------------------------------------------------------------------------------- budgets


@dataclass(frozen=True)
class Budget:
    """What an image may cost at most: a number of MACs, or a fraction of the dense network's.

    Attributes:
        macs: MACs of one image, or ``None``.
        fraction: share of the dense network's MACs, or ``None``. Exactly one of the two is given.

    Raises:
        InputError: unless exactly one is given and it is positive.
    """

    macs: float | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.macs is None) == (self.fraction is None):
            raise InputError("a budget is either macs (3e9) or fraction (0.6) of dense: give one")
        value = self.macs if self.macs is not None else self.fraction
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            name = "macs" if self.macs is not None else "fraction"
            raise InputError(f"a budget is positive, got {name}={value!r}")

    def of(self, dense: int) -> float:
        """The budget in MACs, for a network whose dense MACs are given."""
        return self.macs if self.macs is not None else dense * (self.fraction or 0.0)


_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_budget(text: str | float) -> Budget:
    """A budget as people write it: ``"3.0G"``, ``"900M"``, ``"60%"``, ``"0.6"`` or ``0.6``.

    A bare number up to 1 is a fraction of the dense network's MACs; larger numbers need a unit.

    Raises:
        InputError: if it can't be read, or is not positive.
    """
    hint = f"a budget is written like 3.0G, 900M or 60% (of dense), got {str(text)!r}"
    written = str(text).strip().upper().removesuffix("MACS").strip()
    unit = written[-1:]
    try:
        number = float(written[:-1] if unit == "%" or unit in _UNITS else written)
    except ValueError:
        raise InputError(hint) from None
    if not 0 < number < float("inf"):
        raise InputError(hint)
    if unit == "%":
        return Budget(fraction=number / 100)
    if unit in _UNITS:
        return Budget(macs=number * _UNITS[unit])
    if number > 1:
        raise InputError(hint)
    return Budget(fraction=number)


def keep_ratio_for(
    model: nn.Module,
    *,
    macs: float | None = None,
    fraction: float | None = None,
    image_size: ImageSize = None,
    stages: Sequence[int] | None = None,
) -> float:
    """The largest ρ (in steps of 1e-4) whose MACs do not exceed a budget.

    The prediction modules are part of the cost at every ρ, 1 included: a budget of exactly the
    dense MACs gives a ρ a little below 1. A budget that pays for both gives 1.

    Args:
        model: a :class:`DynamicViT`, or a supported backbone.
        macs: the budget in MACs of one image ("at most 3e9").
        fraction: or as a share of the dense network's MACs ("0.6 of dense").
        image_size: see :func:`schedule_macs`.
        stages: block indices; by default those of the :class:`DynamicViT`, or 1/4, 2/4 and 3/4 of
            the backbone's depth.

    Raises:
        InputError: if the budget is below what keeping one token per stage costs (the message
            says how much that is), not positive, or not exactly one of the two is given.
    """
    budget = Budget(macs, fraction)
    depth = len(adapter_for(backbone_of(model)).blocks(backbone_of(model)))
    inner = core_of(model)
    if stages is None and isinstance(inner, DynamicViT):
        stages = inner.schedule.stages
    schedule = Schedule.for_depth(depth, 1.0, stages)
    costs = costs_of(model, len(schedule.stages), image_size)
    limit = budget.of(schedule_macs(model, DENSE, image_size))

    def cost(step: int) -> int:
        return costs.total(Schedule.for_depth(depth, step * RATIO_STEP, schedule.stages))

    top = round(1 / RATIO_STEP)
    if cost(top) <= limit:
        return 1.0
    if cost(1) > limit:
        raise InputError(
            f"a budget of {limit / 1e9:.3g} GMACs is too small: with one token kept at stages "
            f"{schedule.stages} an image still costs {cost(1) / 1e9:.3g} GMACs"
        )
    low, high = 1, top  # cost(low) fits and cost(high) does not; the cost never falls with ρ
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return round(low * RATIO_STEP, 4)


# -------------------------------------------------------------------------------- inside


def _fitting(model: nn.Module, schedule: Schedule) -> Schedule:
    """The schedule, checked against the model's depth."""
    if not schedule.stages:
        return schedule
    depth = len(adapter_for(backbone_of(model)).blocks(backbone_of(model)))
    return Schedule.for_depth(depth, schedule.keep_ratios, schedule.stages)
