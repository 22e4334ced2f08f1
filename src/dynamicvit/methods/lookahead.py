"""Look-ahead merging: merge what the coming block will miss least. Needs no training and no data.

Tokens are paired and merged as in token merging (:mod:`dynamicvit.methods.tome`), with six
differences. A pair merges by what would be missed: how far its token moves, and how much attention
the class token is about to pay to it in the block that comes, which the block's own weights tell
before it runs. Likeness is that of the tokens themselves, not of keys. The halves that are paired
alternate along rows and columns in turn. In the mean that a merged token is, a patch counts by the
root of that attention. The mean stays as long as its patches were. And each stage leaves a share of
the tokens, a larger one at the first stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.core.combination import Combination, match, merge, merged_at_once
from dynamicvit.core.merging import cosines, halves, sizes_of
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens, rows_of
from dynamicvit.methods.class_attention import class_attention

#: Of images one in so many blocks lies before the first stage, blocks 0 and 1 of 12, and as many at
#: the end have none: a stage there costs more time than it spares. Of clips every block has one:
#: most of a tubelet is in the one before it, and there are too many to pay for two whole blocks.
ENDS = 6

#: At stage i of n, ``last ** ((i / n) ** BEND)`` of the tokens are left: 1 is geometric, more drops
#: less at the first stages and more at the last (docs/notebook/untrained.md).
BEND = 1.25

#: Schedules that budgets choose from: so many shares for the last stage, from all down to none.
STEPS = 1000


@register_method(
    "lookahead",
    does="merges the tokens that the coming block's class token would miss least",
)
class LookAhead(Combination):
    """Merges the pairs by which least is missed, at stages before all blocks but the outer ones.

    Of 12 blocks before 2 to 9; of clips before every block.

    Where positions or norms come between the projections and their products (rotary positions,
    relative bias), the class token's attention is that of the block before. Without a class token
    all tokens are worth the same, and likeness alone decides.

    Args:
        bound: the network, whose coming block is looked at.
    """

    works_untrained = True

    def __init__(self, bound: Backbone) -> None:
        super().__init__()
        self.bound = bound
        self.looks_back = bound.has_class_token and not bound.has_plain_products

    @classmethod
    def for_stage(cls, bound: Backbone) -> LookAhead:
        """One that looks at this network."""
        return cls(bound)

    @classmethod
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """From dense on down; a stage merges at most half of the tokens that come to it."""
        depth, num_patches = len(bound.blocks), prod(bound.grid(*bound.image_size))
        stages = range(max(1, depth // ENDS), depth - depth // ENDS)
        if bound.frames is not None:
            stages = range(int(cls(bound).looks_back), depth)  # nothing is behind block 0
        return _schedules(stages, num_patches)

    def combine(self, tokens: Tokens, count: int) -> Tokens:
        """The tokens after the pairs by which least is missed have merged.

        In rounds of at most half of them; the schedules that budgets choose from need one.
        """
        while (number := merged_at_once(tokens, count)) > 0:
            tokens = self._round(tokens, number)
        return tokens

    def _round(self, tokens: Tokens, number: int) -> Tokens:
        """The tokens after so many pairs have merged."""
        share, order = self._share(tokens), _order(tokens)
        patches, worth, weight = tokens.patches, None, None
        if share is not None:
            worth, weight = share.log(), (share * sizes_of(tokens)).sqrt()
        if order is not None:
            patches = rows_of(tokens.x, order + tokens.num_prefix)
            worth = None if worth is None else worth.gather(1, order)
        pairs = match(cosines(*halves(patches)), number, worth)
        if order is not None:
            pairs = order.gather(1, pairs[0]), order.gather(1, pairs[1])
        return merge(tokens, *pairs, keep_length=True, weight=weight)

    @torch.no_grad()
    def _share(self, tokens: Tokens) -> Tensor | None:
        """``(B, M)``: the class token's attention to each patch token, mean of the heads."""
        if not self.bound.has_class_token or (self.looks_back and tokens.heads is None):
            return None  # after a round, heads are those of other tokens
        if self.looks_back:
            share = class_attention(tokens)
        else:
            products = self.bound.first_products(self.bound.blocks[tokens.block], tokens.x)
            products = products.to(torch.promote_types(products.dtype, torch.float32))
            size = tokens.over_all(tokens.size)
            products = products if size is None else products + size.log()[:, None]
            share = products.softmax(dim=-1).mean(dim=1)[:, tokens.num_prefix :]
        return share.clamp(min=torch.finfo(share.dtype).tiny)


@lru_cache
def _schedules(stages: range, num_patches: int) -> tuple[Schedule, ...]:
    if not stages:
        raise InputError("lookahead needs a network of 2 blocks or more, got 1")
    options: dict[Schedule, None] = {}
    for step in range(STEPS, 0, -1):
        held, kept = num_patches, []
        for stage in range(1, len(stages) + 1):
            share = (step / STEPS) ** ((stage / len(stages)) ** BEND)
            held = min(held, max(1, round(num_patches * share), held - held // 2))
            kept.append(held)
        options[Schedule(tuple(stages), tuple(count / num_patches for count in kept))] = None
    return tuple(options)


def _order(tokens: Tokens) -> Tensor | None:
    """``(B, M)``: positions in the order in which every second token is of the one half.

    Along each axis of the grid in turn, from block to block: neighbors below each other can then
    merge as well as those beside each other. ``None`` for the order that the tokens have.
    """
    axis = tokens.block % len(tokens.grid)
    if axis == len(tokens.grid) - 1:
        return None
    others = [side for other, side in enumerate(tokens.grid) if other != axis]
    places = torch.arange(tokens.grid_size, device=tokens.x.device)
    along = places.reshape(*others, tokens.grid[axis]).movedim(-1, axis).flatten()
    return along[tokens.kept_index()].argsort(dim=1)
