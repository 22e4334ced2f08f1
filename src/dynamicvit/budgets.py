"""From a budget to keep ratios: so many MACs, or token counts that fill whole tiles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.spatial import least_keep_ratio, method_for
from dynamicvit.costs import ImageSize, costs_of, resolve_image_size
from dynamicvit.errors import InputError
from dynamicvit.utils.words import shortened

#: Keep ratios for a budget are whole multiples of this.
RATIO_STEP = 1e-4

#: Rows of a tile of AMX, in bfloat16 as in int8.
TILE = 16


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


#: In its unit.
MOST_LATENCY = 1e6
_LATENCY = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)")


def parse_latency(text: str | None) -> float | None:
    """Seconds from ``20ms`` or ``0.5s``.

    Raises:
        InputError: for any other text, and for zero.
    """
    if text is None:
        return None
    found = _LATENCY.fullmatch(text.strip())
    if found is None or not 0 < float(found[1]) <= MOST_LATENCY:
        raise InputError(f"a latency is positive and written 20ms or 0.5s, got {shortened(text)}")
    return float(found[1]) * {"ms": 1e-3, "s": 1.0}[found[2]]


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
    inner = core_of(model)
    bound = inner.bound if isinstance(inner, DynamicViT) else backbone_for(inner)
    kind, own = method_for(PredictionModule, bound), Schedule((), ())
    if stages is None and isinstance(inner, DynamicViT):
        kind, own = inner.method, inner.schedule
        stages = own.stages
    schedule = kind.schedule
    stages = schedule(bound, 1.0, stages).stages
    costs = costs_of(model, len(stages), image_size)
    limit = budget.of(costs.dense)

    def cost(step: int) -> int:
        made = schedule(bound, step * RATIO_STEP, stages, own.policy)
        return costs.total(replace(made, restore_before=own.restore_before))

    top = round(1 / RATIO_STEP)
    if cost(top) <= limit:
        return 1.0
    least = 1 + round(least_keep_ratio(kind, len(stages)) / RATIO_STEP)
    if cost(least) > limit:
        raise InputError(
            f"a budget of {limit / 1e9:.3g} GMACs is too small: with one token kept at stages "
            f"{stages} an image still costs {cost(least) / 1e9:.3g} GMACs"
        )
    low, high = least, top  # cost(low) fits and cost(high) does not; the cost never falls with ρ
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return round(low * RATIO_STEP, 4)


def tiled_keep_ratios(
    model: DynamicViT, tile: int = TILE, image_size: ImageSize = None
) -> tuple[float, ...]:
    """For each stage the ratio next to the model's own that keeps a whole number of tiles.

    A matrix unit (AMX, tensor cores) takes rows by the tile, and a kernel cuts what remains into
    smaller pieces. With one image a stage's tokens are the rows of every product: 68 of them can
    take longer than 80 (docs/performance.md). The nearest whole number of tiles costs about the
    same MACs.

    Counted are all tokens that go on, prefix tokens included. A stage that keeps every patch goes
    on doing so. Set ``model.keep_ratio`` to what is returned.

    Args:
        model: at the keep ratios to start from.
        tile: rows of a tile.
        image_size: as of :func:`~dynamicvit.costs.schedule_macs`.

    Returns:
        Shares of the N patches, never growing. Where a tile more or less is not to be had, what is
        left fills none: a single patch, or all that came.

    Raises:
        InputError: for a tile of less than one row.
    """
    if tile < 1:
        raise InputError(f"a tile has at least 1 row, got {tile}")
    patches = prod(model.bound.grid(*resolve_image_size(model, image_size)))
    prefix, counts = model.num_prefix_tokens, [patches]
    for kept, method in zip(model.schedule.kept(patches), model.methods, strict=True):
        prefix += method.adds
        rows = tile * ((2 * (prefix + kept) + tile) // (2 * tile))  # half a tile is rounded up
        # Rounded up, it may be more than there are.
        counts.append(patches if kept == patches else max(1, min(rows - prefix, counts[-1])))
    return tuple(count / patches for count in counts[1:])
