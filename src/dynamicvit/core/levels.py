"""Maps at the four levels of a hierarchical network, for dense prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from dynamicvit.backbones import Hierarchical
from dynamicvit.core.parts import only_part

if TYPE_CHECKING:
    from dynamicvit.core.model import DynamicViT


def level_info(bound: Hierarchical) -> list[dict[str, Any]]:
    """For each level its name, its width, and the pixels along a position's side."""
    return [{**info, "module": f"backbone.{info['module']}"} for info in bound.module.feature_info]


def level_maps(
    model: DynamicViT, images: Tensor, indices: list[int], norm: bool, stop_early: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The final map, and those of chosen levels as the pruned path has them.

    All of their positions are there: those on the cheap path with what that gave them.

    Args:
        model: of a hierarchical network.
        images: ``(B, channels, height, width)``.
        indices: of levels, ascending.
        norm: put the last level through the final norm, as the network's own method does.
        stop_early: don't run the fourth stage if nothing of it is asked for.

    Returns:
        The final map, ``None`` if that was not run; and of each level ``(B, C, rows, columns)``.
    """
    found: list[Tensor] = []
    view = model.at(model.schedule)
    assert isinstance(model.bound, Hierarchical)
    view.bound = bound = model.bound.noting(found.append)
    tokens = only_part(view._walk(view._embed(images), view._prune, view.depth))
    if stop_early and max(indices) < len(bound.levels) - 1:
        found.append(bound.channels_first(bound.map_of(tokens)))
        return None, [found[i] for i in indices]
    final = bound.features(bound.finish(tokens))
    found[-1] = bound.channels_first(final) if norm else found[-1]
    return final, [found[i] for i in indices]
