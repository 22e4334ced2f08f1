"""Each way at the MACs that it can reach nearest to a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.budgets import keep_ratio_for
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.costs import DENSE, costs_of, meta_copy, schedule_macs
from dynamicvit.errors import InputError
from dynamicvit.methods.downsampling import Downsampling, pooled_grid
from dynamicvit.methods.tome import TokenMerging
from dynamicvit.methods.width import narrow

T = TypeVar("T")

#: Head widths are multiples of this.
_HEAD_STEP = 2


def with_keep_ratio(
    backbone: nn.Module,
    fraction: float,
    stage: Callable[[], nn.Module],
    stages: Sequence[int] | None = None,
    policy: Policy = "removed",
) -> DynamicViT:
    """Tokens chosen in stages, with the largest ρ that the budget pays for.

    Args:
        backbone: a dense network.
        fraction: of its MACs.
        stage: makes each stage's module.
        stages: block indices; by default at 1/4, 2/4 and 3/4 of the depth.
        policy: what becomes of dropped tokens.

    Raises:
        InputError: for a budget below what one token at each stage costs.
    """
    depth = len(backbone_for(backbone).blocks)
    schedule = Schedule.for_depth(depth, 1.0, stages, policy)
    model = DynamicViT(backbone, schedule, [stage() for _ in schedule.stages])
    model.keep_ratio = keep_ratio_for(model, fraction=fraction)
    return model


def with_downsampling(backbone: nn.Module, fraction: float) -> DynamicViT:
    """Tokens pooled once, before the block that comes nearest to the budget."""
    bound = backbone_for(backbone)
    grid = bound.grid(*bound.image_size)
    rows, columns = pooled_grid(grid)
    share = rows * columns / (grid[0] * grid[1])
    models = [
        DynamicViT(backbone, Schedule((block,), (share,)), [Downsampling()])
        for block in range(len(bound.blocks))
    ]
    return _nearest(models, lambda model: schedule_macs(model, model.schedule), backbone, fraction)


def with_merging(backbone: nn.Module, fraction: float) -> DynamicViT:
    """Tokens merged after every block but the last: as many each time, while there are enough.

    The number varies by one from block to block, so that the budget is met; a stage that has fewer
    merges half of what it has.
    """
    depth = len(backbone_for(backbone).blocks)
    if depth < 2:
        raise InputError("merging looks at the block before, so it needs two blocks or more")
    num_patches = costs_of(backbone, num_stages=0).num_patches
    stages = tuple(range(1, depth))
    # Every number for each time that can be told apart, up to half of all tokens.
    most = num_patches // 2 * len(stages)
    schedules = dict.fromkeys(
        _merged(num_patches, stages, total / len(stages)) for total in range(most + 1)
    )
    model = DynamicViT(backbone, next(iter(schedules)), [TokenMerging() for _ in stages])
    costs = costs_of(model, len(stages))
    best = _nearest(list(schedules), costs.total, backbone, fraction)
    return DynamicViT(backbone, best, list(model.predictors))


def with_width(backbone: nn.Module, fraction: float) -> DynamicViT:
    """A narrower dense network, whose heads are as wide as comes nearest to the budget."""
    network = backbone_for(backbone).blocks[0]
    whole = getattr(getattr(network, "attn", None), "head_dim", 2)
    widths = list(range(_HEAD_STEP, whole, _HEAD_STEP)) or [whole - 1]
    shapes = meta_copy(backbone)

    def cost(width: int) -> int:
        return schedule_macs(narrow(shapes, width), DENSE)

    budget = fraction * schedule_macs(backbone, DENSE)
    above = bisect_left(widths, budget, key=cost)  # the cost grows with the width
    best = _nearest(widths[max(0, above - 1) : above + 1], cost, backbone, fraction)
    return DynamicViT(narrow(backbone, best), DENSE, [])


def _merged(num_patches: int, stages: Sequence[int], each: float) -> Schedule:
    """So many tokens merged at each stage on average; a stage can merge half of its tokens."""
    held, kept = num_patches, []
    for number in range(1, len(stages) + 1):
        held = max(num_patches - round(each * number), held - held // 2)
        kept.append(held)
    return Schedule(tuple(stages), tuple(k / num_patches for k in kept))


def _nearest(
    options: Iterable[T], cost: Callable[[T], int], backbone: nn.Module, fraction: float
) -> T:
    """The option whose MACs are nearest to a fraction of the dense network's."""
    budget = fraction * schedule_macs(backbone, DENSE)
    return min(options, key=lambda option: abs(cost(option) - budget))
