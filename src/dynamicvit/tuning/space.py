"""The schedules that a search chooses from: where a network can drop tokens, and in what shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp, log, prod

from dynamicvit.core.combination import Combination
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError

Counts = tuple[int, ...]
"""How many patch tokens are kept from each stage of a :class:`Space` on; never growing."""

Shape = tuple[float, ...]
"""For each stage of a :class:`Space` its part of what is dropped, on a logarithmic scale.

Stage i keeps ``exp(-scale · (shape[0] + ... + shape[i]))`` of the patches. The scale is what a
budget decides; a power of all shares, as ρ², ρ⁴, ρ⁶ are of ρ, ρ², ρ³.
"""

Price = Callable[[Counts], float]
"""What an image, or a batch, costs: MACs or seconds."""

#: Tokens by which a count may grow if that costs nothing, because it fills a tile.
_FREE = 16


@dataclass(frozen=True)
class Space:
    """Where a network can drop tokens.

    Attributes:
        stages: blocks before which it can.
        num_patches: N.
        policy: what becomes of dropped tokens.
        movable: whether a stage that drops nothing is left out; prediction modules stay.
        halves: whether a stage leaves at least half of the tokens that come.
        restore_before: block before which dropped tokens come back.
    """

    stages: tuple[int, ...]
    num_patches: int
    policy: Policy
    movable: bool
    halves: bool
    restore_before: int | None = None

    @classmethod
    def of(cls, model: DynamicViT, image_size: tuple[int, int]) -> Space:
        """All that a model's method can do: before any block but the first, if it has no weights.

        Raises:
            InputError: for a method that takes no other schedules than its own.
        """
        if not model.method.takes_any_schedule:
            raise InputError(f"method {model.method.name} takes no schedule: nothing to tune")
        if model.method.reactivates:
            raise InputError(
                f"method {model.method.name} may take tokens up again: nothing to tune"
            )
        if not model.schedule.stages:
            raise InputError("the model has no stages: nothing to tune")
        movable = not any(method.state_dict() for method in model.methods)
        first = min(1, *model.schedule.stages)
        back = model.schedule.restore_before
        last = model.depth if back is None else back
        stages = tuple(range(first, last)) if movable else model.schedule.stages
        patches = prod(model.bound.grid(*image_size))
        halves = issubclass(model.method, Combination)
        return cls(stages, patches, model.policy, movable, halves, back)

    def counts(self, shape: Shape, scale: float) -> Counts:
        """What a shape keeps at a scale."""
        held, kept = self.num_patches, []
        for part, total in zip(shape, accumulate(shape), strict=True):
            if part:
                least = held - held // 2 if self.halves else 1
                held = min(held, max(least, round(self.num_patches * exp(-scale * total)), 1))
            kept.append(held)
        return tuple(kept)

    def counts_of(self, schedule: Schedule) -> Counts:
        """What a schedule keeps, whose stages are all among these."""
        at = dict(zip(schedule.stages, schedule.kept(self.num_patches), strict=True))
        return tuple(accumulate((at.get(stage, self.num_patches) for stage in self.stages), min))

    def schedule(self, counts: Counts) -> Schedule:
        """The schedule that keeps so many; stages that drop nothing are left out if they can be."""
        before = (self.num_patches, *counts)
        kept = [
            (stage, count / self.num_patches)
            for stage, held, count in zip(self.stages, before, counts, strict=False)
            if count < held or not self.movable
        ]
        stages, ratios = zip(*kept, strict=True) if kept else ((), ())
        return Schedule(stages, ratios, self.policy, self.restore_before)

    def shape_of(self, counts: Counts) -> Shape:
        """The shape whose multiples these counts are among; of what drops nothing, an even one."""
        shares = [1.0, *(count / self.num_patches for count in counts)]
        parts = [log(before / after) for before, after in pairwise(shares)]
        return normalized(parts) if any(parts) else (1 / len(counts),) * len(counts)

    def bent(self, bend: float, first: int = 0, stride: int = 1) -> Shape:
        """Total drops that grow as a power of the place, from the first stage on, at every n-th.

        Args:
            bend: 1 is geometric; more drops less at the first stages.
            first: place of the first stage that drops among :attr:`stages`.
            stride: n.
        """
        places = range(first, len(self.stages), stride)
        totals = [((place + 1) / len(places)) ** bend for place in range(len(places))]
        parts = dict(zip(places, (b - a for a, b in pairwise([0.0, *totals])), strict=True))
        return normalized([parts.get(place, 0.0) for place in range(len(self.stages))])

    def three_stages(self, depth: int) -> Shape | None:
        """The paper's: equal drops before 1/4, 2/4 and 3/4 of the blocks; ``None`` if it can't."""
        at = {depth * quarter // 4 for quarter in (1, 2, 3)}
        if len(at) < 3 or not at <= set(self.stages):
            return None
        return normalized([float(stage in at) for stage in self.stages])

    def fit(self, shape: Shape, price: Price, limit: float) -> Counts | None:
        """The most that a shape can keep within a limit, ``None`` if nothing is within it."""
        low, high = 0.0, 2 * log(self.num_patches) / max(min(filter(None, shape)), 1e-2)
        if price(self.counts(shape, low)) <= limit:
            return self.counts(shape, low)
        if price(self.counts(shape, high)) > limit:
            return None
        for _ in range(40):  # price(low) > limit >= price(high)
            middle = (low + high) / 2
            low, high = (
                (low, middle) if price(self.counts(shape, middle)) <= limit else (middle, high)
            )
        return self._filled(self.counts(shape, high), price, limit)

    def _filled(self, counts: Counts, price: Price, limit: float) -> Counts:
        """The counts with as many more as cost nothing or what rounding has left."""
        for place in range(len(counts)):
            top = counts[place - 1] if place else self.num_patches
            if counts[place] == top:
                continue
            for more in range(min(_FREE, top - counts[place]), 0, -1):
                tried = (*counts[:place], counts[place] + more, *counts[place + 1 :])
                steep = place + 1 < len(tried) and 2 * tried[place + 1] < tried[place]
                if not (self.halves and steep) and price(tried) <= limit:
                    counts = tried
                    break
        return counts


def normalized(parts: Sequence[float]) -> Shape:
    """The parts with a sum of 1."""
    total = sum(parts)
    return tuple(part / total for part in parts)
