"""The released training form of the journal version, to compare with ours.

It carries two maps: one as if every position took the slow path, one as if none did. The map of
the path not taken goes on without the mixing of the block. Written from the facts, not the code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dynamicvit import DynamicViT
from dynamicvit.layers.maps import Map


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

    def played_back(stage: int, scores: Tensor) -> Tensor:
        probability = scores.sigmoid()
        return draws[stage] + (probability - probability.detach() if learns else 0.0)

    end = walk(model, images, played_back)
    return model.bound.head(end), end.x


def walk(model: DynamicViT, images: Tensor, decide: Callable[[int, Tensor], Tensor]) -> Map:
    """The final map.

    Args:
        model: of a ConvNeXt or a Swin.
        images: ``(B, 3, height, width)``.
        decide: from the number of a prediction module and its keep scores ``(B, N)`` the decision
            ``(B, N)``.
    """
    bound: Any = model.bound
    tokens = bound.embed(images)
    grid = tokens.grid
    slow = fast = tokens.x
    mask = None
    stages = {block: stage for stage, block in enumerate(model.schedule.stages)}
    for i, block in enumerate(bound.blocks):
        if i in stages:
            method: Any = model.methods[stages[i]]
            merged = slow if mask is None else slow * mask + fast * (1 - mask)
            fast = slow if mask is None else fast
            mask = decide(stages[i], method.keep_scores(tokens.with_x(merged)))[..., None]
            cheap = method.cheap
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
    return bound.finish(tokens.with_x(slow * mask + fast * (1 - mask)))
