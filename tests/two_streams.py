"""The released training form of the journal version, to compare with ours in tests.

It carries two maps: one as if every position took the slow path, one as if none did. The map of
the path not taken goes on without the mixing of the block. Written from the facts, not the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dynamicvit import DynamicViT


def forward(
    model: DynamicViT, images: Tensor, draws: Sequence[Tensor], learns: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits, and the final map ``(B, N, C)`` after the final norm.

    Args:
        model: of a ConvNeXt or a Swin.
        images: ``(B, 3, height, width)``.
        draws: for each prediction module ``(B, N)``; each enters with the gradient of the keep
            probability.
        learns: whether it does.
    """
    bound: Any = model.bound
    tokens = bound.embed(images)
    grid = tokens.grid
    slow = fast = tokens.x
    mask = None
    stages = dict(zip(model.schedule.stages, range(len(draws)), strict=True))
    for i, block in enumerate(bound.blocks):
        if i in stages:
            stage = stages[i]
            merged = slow if mask is None else slow * mask + fast * (1 - mask)
            probability = model.methods[stage].keep_scores(tokens.with_x(merged)).sigmoid()
            estimate = draws[stage] + probability - probability.detach()
            mask = (estimate if learns else draws[stage])[..., None]
            cheap = model.methods[stage].cheap
            if stage == 0:
                fast = slow
        if mask is None:
            slow = bound.run(i, tokens.with_x(slow)).x
            continue
        merged = slow * mask + fast * (1 - mask)
        base, mixed = bound.mixed(block, merged.unflatten(1, grid))
        base, mixed = base.flatten(1, 2), mixed.flatten(1, 2)
        to_slow = mixed * mask + slow * (1 - mask)
        to_fast = mixed * (1 - mask) + fast * mask
        if bound.channels_last:  # Swin's two maps share the residual
            slow = fast = base
        slow = slow + bound.slow(block, to_slow)
        fast = fast + cheap[str(i)](to_fast)
    end = bound.finish(tokens.with_x(slow * mask + fast * (1 - mask)))
    return bound.head(end), end.x
