"""A batch in parts, where its images keep different numbers of tokens, and other views of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dynamicvit.core.merging import sizes_of
from dynamicvit.errors import InputError
from dynamicvit.layers.maps import Map
from dynamicvit.layers.tokens import Heads, Tokens


def select(tokens: Tokens, images: Tensor) -> Tokens:
    """The tokens of some images of the batch.

    Args:
        tokens: of the batch.
        images: ``(B',)`` their positions here, or ``(B,)`` bool.
    """

    def some(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[images]

    heads = tokens.heads
    if heads is not None:
        bias = heads.bias if heads.bias is None or len(heads.bias) == 1 else heads.bias[images]
        heads = Heads(*(part[images] for part in heads[:3]), bias)
    return replace(
        tokens,
        x=tokens.x[images],
        index=some(tokens.index),
        decision=some(tokens.decision),
        size=some(tokens.size),
        groups=some(tokens.groups),
        dropped=some(tokens.dropped),
        motion=some(tokens.motion),
        heads=heads,
        images=some(tokens.images),
    )


def by_count(tokens: Tokens, kept: Tensor) -> Iterator[tuple[Tokens, Tensor]]:
    """Parts of the batch whose images keep the same number of tokens.

    Args:
        tokens: without decision.
        kept: ``(B, M)`` bool, which of them go on.

    Yields:
        The tokens of a part, and ``(B', K)`` positions of the kept ones, ascending. A map, which
        none leaves, is one part with ``kept`` as it is.
    """
    if isinstance(tokens, Map):
        yield tokens, kept
        return
    counts = kept.sum(dim=1)
    numbers = counts.unique().tolist()
    if len(numbers) > 1 and tokens.images is None:
        tokens = replace(tokens, images=torch.arange(tokens.x.shape[0], device=tokens.x.device))
    for number in numbers:
        rows = counts == number
        part = tokens if len(numbers) == 1 else select(tokens, rows)
        yield part, kept[rows].nonzero()[:, 1].reshape(len(part.x), number)


def joined(parts: Iterable[Tokens]) -> list[Tokens]:
    """Parts that hold as many tokens as one: each part of a batch attends by itself."""
    alike: dict[tuple[int, int, int], list[Tokens]] = {}
    for part in parts:
        alike.setdefault((part.num_patches, part.num_prefix, part.added), []).append(part)
    found = [same[0] if len(same) == 1 else _joined(same) for same in alike.values()]
    if len(found) == 1 and found[0].images is not None:  # the whole batch again
        return [replace(select(found[0], found[0].images.argsort()), images=None)]
    return found


def _joined(parts: list[Tokens]) -> Tokens:
    def all_of(values: Iterable[Tensor | None]) -> Tensor | None:
        found = [value for value in values if value is not None]
        return torch.cat(found) if found else None

    dropped = any(part.index is not None for part in parts)
    sized = any(part.size is not None for part in parts)
    grouped = any(part.groups is not None for part in parts)
    return replace(
        parts[0],
        x=torch.cat([part.x for part in parts]),
        index=torch.cat([part.kept_index() for part in parts]) if dropped else None,
        size=torch.cat([sizes_of(part) for part in parts]) if sized else None,
        groups=torch.cat([part.membership() for part in parts]) if grouped else None,
        dropped=all_of(part.dropped for part in parts),
        motion=all_of(part.motion for part in parts),
        images=all_of(part.images for part in parts),
        heads=None,
    )


def in_order(parts: list[Tokens], values: list[Tensor]) -> Tensor:
    """Values of the parts' images as one tensor, in the order of the batch."""
    if len(parts) == 1:
        return values[0]
    images = [part.images for part in parts if part.images is not None]
    return torch.cat(values)[torch.cat(images).argsort()]


def only_part(parts: list[Tokens]) -> Tokens:
    """The tokens of a batch whose images all hold as many.

    Raises:
        InputError: if they don't.
    """
    if len(parts) > 1:
        raise InputError(
            f"the images keep {len(parts)} different numbers of tokens, which are no one tensor: "
            "give one image at a time, or set model.per_image to None"
        )
    return parts[0]


def zeroed_in(tokens: Tokens) -> Tokens:
    """The tokens with zeros for the dropped ones, which attention then sees."""
    decision = tokens.over_all(tokens.decision)
    x = tokens.x if decision is None else tokens.x * decision[..., None].to(tokens.x.dtype)
    return replace(tokens, x=x, decision=None)
