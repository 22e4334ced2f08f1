"""What a schedule costs, predicted from the network's parts: MACs exactly, seconds as measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import costs_of
from dynamicvit.tuning.space import Counts, Space

PartCost = Callable[[int], float]
"""Cost of a part, by the number of patch tokens that enter it."""


@dataclass(frozen=True)
class Parts:
    """The costs of a network's parts, which together are a :data:`~dynamicvit.tuning.space.Price`.

    Attributes:
        space: whose schedules have a cost.
        fixed: what does not depend on the schedule: embedding, classifier.
        blocks: for each block.
        stages: for each stage of the space, what its method does there.
        adds: for each stage, how many tokens its method adds that later blocks hold.
    """

    space: Space
    fixed: float
    blocks: Sequence[PartCost]
    stages: Sequence[PartCost]
    adds: Sequence[int]

    @property
    def dense(self) -> float:
        """Cost of the network of which nothing is dropped, nor scored."""
        return self.fixed + sum(block(self.space.num_patches) for block in self.blocks)

    def __call__(self, counts: Counts) -> float:
        """Cost under a schedule."""
        total, held, added = self.fixed, self.space.num_patches, 0
        places = {stage: place for place, stage in enumerate(self.space.stages)}
        for i, block in enumerate(self.blocks):
            held = self.space.num_patches if i == self.space.restore_before else held
            place = places.get(i)
            if place is not None and (counts[place] < held or not self.space.movable):
                total += self.stages[place](held)
                held, added = counts[place], added + self.adds[place]
            total += block(held + added)
        return total


def price_in_macs(model: DynamicViT, space: Space, image_size: tuple[int, int]) -> Parts:
    """The MACs of an image.

    Exact where a stage merges at most half of the tokens; of methods that add tokens nearly so.

    Args:
        model: with a stage before each block of the space.
        space: of the schedules.
        image_size: height and width in pixels.
    """
    costs = costs_of(model, len(space.stages), image_size)
    head = costs.head(space.num_patches)  # of the mean over tokens nothing is counted

    return Parts(space, costs.embed + head, costs.blocks, costs.stages, costs.adds)


@dataclass(frozen=True)
class Curve:
    """A cost through measured points, straight between them.

    Attributes:
        points: token counts, ascending.
        values: cost at each.
    """

    points: tuple[int, ...]
    values: tuple[float, ...]

    def __call__(self, count: int) -> float:
        """The cost at a count; outside the points as at the nearest one."""
        return float(np.interp(count, self.points, self.values))

    @classmethod
    def through(cls, values: Mapping[int, float] | Mapping[str, float]) -> Curve:
        """The curve through costs by token count."""
        points = sorted((int(count), value) for count, value in values.items())
        return cls(tuple(count for count, _ in points), tuple(value for _, value in points))


def price_in_seconds(space: Space, times: Mapping[str, Any], scale: float = 1.0) -> Parts:
    """The seconds of a batch.

    Args:
        space: of the schedules.
        times: of :func:`~dynamicvit.tuning.block_times.measure_parts`, or of
            :func:`~dynamicvit.tuning.block_times.measure_whole`: ``fixed``, seconds; ``curves``,
            seconds by token count; ``blocks``, the curve of each block; ``stage``, that of stages.
        scale: by which whole models were measured to take longer than their parts.
    """
    curves = {
        name: Curve.through({count: scale * value for count, value in values.items()})
        for name, values in times["curves"].items()
    }
    return Parts(
        space,
        scale * times["fixed"],
        [curves[name] for name in times["blocks"]],
        [curves[times["stage"]]] * len(space.stages),
        [0] * len(space.stages),
    )
