"""Each method at the MACs that it can reach nearest to a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from torch import nn

from dynamicvit.backbones import Backbone, backbone_for
from dynamicvit.budgets import keep_ratio_for
from dynamicvit.core.method import Method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import backbone_of, core_of
from dynamicvit.core.registry import method_named
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.core.spatial import method_for
from dynamicvit.costs import DENSE, costs_of, meta_copy, schedule_macs
from dynamicvit.errors import InputError
from dynamicvit.methods.pixels import FewerPixels, shrunk
from dynamicvit.methods.width import Narrow, narrow

#: Head widths are multiples of this.
_HEAD_STEP = 2


def at_macs(
    method: str,
    backbone: nn.Module,
    fraction: float,
    *,
    stages: Sequence[int] | None = None,
    policy: Policy | None = None,
) -> DynamicViT:
    """A model that uses a method, at a share of the dense network's MACs.

    A method that keeps ρ, ρ², ... at its stages gets the largest ρ that the budget pays for; of the
    others the model's MACs are the nearest that they can reach.

    Args:
        method: its name in :data:`~dynamicvit.methods.METHODS`.
        backbone: a supported vision transformer, or a dense model around one; used as it is, not
            copied (but by "narrow" and "fewer-pixels").
        fraction: of its MACs, between 0 and 1.
        stages: block indices, for a method that has no stages of its own.
        policy: what becomes of dropped tokens; by default the method's own.

    Returns:
        In the backbone's mode.

    Raises:
        InputError: for an unknown method, a fraction outside (0, 1) or too small for the method, or
            a backbone that the method can't have.
    """
    core = core_of(backbone)
    dense = core if isinstance(core, DynamicViT) else None
    bound = backbone_for(backbone) if dense is None else dense.bound
    kind = method_for(method_named(method), bound)
    if not 0 < fraction < 1:
        raise InputError(f"a share of the dense MACs is between 0 and 1, got {fraction}")
    if kind in NETWORKS:
        if policy == "bypassed":
            raise InputError(
                f"policy 'bypassed' is for methods that drop tokens; {method} drops none"
            )
        if dense is not None and type(dense) is not DynamicViT:
            raise InputError(f"method {method} makes another network, and only of classifiers")
        return NETWORKS[kind](backbone_of(backbone), fraction)
    make = DynamicViT if dense is None else dense.like
    options = own_schedules(method, bound, stages)
    schedule = options[0] if options else kind.schedule(bound, 1.0, stages, policy)
    model = make(bound, schedule, kind)
    if not options:
        model.keep_ratio = keep_ratio_for(model, fraction=fraction)
        return model.train(bound.module.training)
    costs = costs_of(model, len(schedule.stages))
    budget = fraction * costs.dense
    best = min(options, key=lambda option: abs(costs.total(option) - budget))
    best = replace(best, policy=policy or kind.default_policy)
    model = make(bound, best, list(model.predictors))
    return model.train(bound.module.training)


def own_schedules(method: str, bound: Backbone, stages: Sequence[int] | None) -> Sequence[Schedule]:
    """The schedules that a method chooses from, none where it takes any keep ratio at any stages.

    Raises:
        InputError: if stages are named to a method that has its own.
    """
    options = method_named(method).schedules(bound)
    if options and stages is not None:
        raise InputError(
            f"{method} has stages of its own: leave stages {tuple(stages)} out, or name a method "
            "that has none, as dynamicvit"
        )
    return options


def _narrow_at(backbone: nn.Module, fraction: float) -> DynamicViT:
    """The dense network with heads as wide as comes nearest to the budget."""
    first = backbone_for(backbone).blocks[0]
    whole = getattr(getattr(first, "attn", None), "head_dim", 2)
    widths = list(range(_HEAD_STEP, whole, _HEAD_STEP)) or [whole - 1]
    shapes = meta_copy(backbone)
    budget = fraction * schedule_macs(backbone, DENSE)

    @cache
    def cost(width: int) -> int:
        return schedule_macs(narrow(shapes, width), DENSE)

    above = bisect_left(widths, budget, key=cost)  # the cost grows with the width
    near = widths[max(0, above - 1) : above + 1]
    best = min(near, key=lambda width: abs(cost(width) - budget))
    return DynamicViT(narrow(backbone, best), DENSE, Narrow).train(backbone.training)


def _shrunk_at(backbone: nn.Module, fraction: float) -> DynamicViT:
    """The dense network at the size of frames that comes nearest to the budget."""
    bound = backbone_for(backbone)
    (height, width), (rows, columns) = bound.image_size, bound.patch_size
    sizes = [
        (row * rows, max(1, round(row * rows * width / height / columns)) * columns)
        for row in range(1, height // rows)
    ]
    shapes = meta_copy(backbone)
    budget = fraction * schedule_macs(backbone, DENSE)

    @cache
    def cost(size: tuple[int, int]) -> int:
        return schedule_macs(shrunk(shapes, *size).module, DENSE)

    above = bisect_left(sizes, budget, key=cost)
    best = min(sizes[max(0, above - 1) : above + 1], key=lambda size: abs(cost(size) - budget))
    return DynamicViT(shrunk(backbone, *best), DENSE, FewerPixels).train(backbone.training)


#: Methods whose budget is in the network, and how it is made for a share of the dense MACs.
NETWORKS: dict[type[Method], Callable[[nn.Module, float], DynamicViT]] = {
    Narrow: _narrow_at,
    FewerPixels: _shrunk_at,
}
