"""DiffRate: prune a few tokens and merge more, before almost every block.

After Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers"
(ICCV 2023), Section 3. What a stage does is theirs (Section 3.2, token sorting). How much each
stage drops they learn by gradient descent through the rates (Section 3.3); here that is read from
the rates that they publish for DeiT-Tiny, and ``dynamicvit tune`` finds others for a network.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import exp, log, prod

import torch
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.core.merging import has_better, join, most_alike, sizes_of
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens
from dynamicvit.methods.class_attention import ClassAttention

#: Of the tokens that a stage drops, the share that is pruned; the others merge. The published rates
#: for DeiT-Tiny and DeiT-Small prune 0.32 to 0.40 of them, with no trend over the blocks.
PRUNED = 0.36

#: Of 197 tokens, those left after blocks 0 to 10 of 12: the rates found for DeiT-Tiny at 0.9, 0.8,
#: 0.7 and 0.6 GFLOPs (compression_rate.json of the authors' repository, OpenGVLab/DiffRate).
RATES = (
    (197, 196, 194, 188, 172, 147, 129, 115, 107, 103, 96),
    (197, 196, 190, 172, 154, 125, 107, 96, 84, 78, 70),
    (197, 196, 192, 158, 133, 103, 88, 72, 64, 58, 49),
    (197, 187, 167, 139, 114, 90, 76, 66, 57, 45, 37),
)

#: Schedules that budgets choose from: so many between one of the published rates and the next.
STEPS = 200

#: Sizes have logarithms.
LEAST_SIZE = 1e-3

#: The smallest budget has the last rates to this power.
LAST_POWER = 10


@register_method(
    "diffrate",
    does="prunes the patches that the class token attends to least, and merges the next",
    paper="Chen et al., ICCV 2023",
)
class DiffRate(ClassAttention):
    """Drops the patches that the class token attends to least; of these it prunes the last.

    The others become part of the kept token that is most like them (cosine), a plain mean of the
    tokens. In attention a token counts for its patches, those of a merged one times the cosine.
    """

    merges = True

    @classmethod
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """From dense on down, through the published rates.

        Those of other depths are read at the same share of the depth.
        """
        return _schedules(len(bound.blocks), prod(bound.grid(*bound.image_size)))

    def absorb(
        self,
        tokens: Tokens,
        dropped: Tensor,
        kept: Tensor,
        alike: Tensor,
        keep_scores: Tensor | None,
    ) -> Tokens:
        """The tokens after all that are dropped, but those that are pruned, have merged."""
        scores = self.keep_scores(tokens) if keep_scores is None else keep_scores
        here = dropped > 0.5
        behind = (has_better(scores) & here[:, :, None]).sum(dim=1)  # dropped ones that are worse
        pruned = here & (behind < (PRUNED * here.sum(dim=1, keepdim=True)).round())
        host = most_alike(alike, kept)
        cosine = alike.gather(2, host[..., None])[..., 0]
        size = sizes_of(tokens)
        size = torch.where(kept, size, size * cosine.clamp(min=LEAST_SIZE))
        return join(
            replace(tokens, size=size), dropped * ~pruned, host, weight=torch.ones_like(size)
        )


@lru_cache
def _schedules(depth: int, num_patches: int) -> tuple[Schedule, ...]:
    places = {i: i * 12 / depth - 1 for i in range(1, depth)}  # in RATES
    stages = tuple(i for i, place in places.items() if place > 0)
    if not stages:
        raise InputError(f"diffrate needs a network of 2 blocks or more, got {depth}")
    dense = (0.0,) * len(RATES[0])
    logs = [dense, *(tuple(log((left - 1) / 196) for left in rates) for rates in RATES)]
    options: dict[Schedule, None] = {}
    for step in range(STEPS * (len(logs) - 1) * 2 + 1):
        level, held, kept = step / STEPS, num_patches, []
        for stage in stages:
            share = exp(_between(_level(logs, level), places[stage]))
            held = min(held, max(1, round(num_patches * share)))
            kept.append(held)
        options[Schedule(stages, tuple(count / num_patches for count in kept))] = None
    return tuple(options)


def _level(logs: Sequence[Sequence[float]], level: float) -> Sequence[float]:
    """Logarithms of the shares between two published rates, or beyond the last."""
    last = len(logs) - 1
    if level >= last:
        power = LAST_POWER ** ((level - last) / last)
        return [power * value for value in logs[-1]]
    low = int(level)
    return [a + (level - low) * (b - a) for a, b in zip(logs[low], logs[low + 1], strict=True)]


def _between(values: Sequence[float], place: float) -> float:
    """The value at a place between two others."""
    low = min(bisect_right(range(len(values)), place), len(values) - 1) - 1
    return values[low] + (place - low) * (values[low + 1] - values[low])
