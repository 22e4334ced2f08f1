"""The order of an epoch, the same in every process for the same seed."""

from __future__ import annotations

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

WINDOW = 8192
"""Images of consecutive shards that are shuffled together, about; as many as timm shuffles."""


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Up to ``count`` of the indices, evenly spaced."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return indices[np.unique(places)]


def parts_of(data: Dataset) -> list[Dataset]:
    """The sets that a ``ConcatDataset`` is made of, or the one."""
    return list(data.datasets) if isinstance(data, ConcatDataset) else [data]


def shuffled(data: Dataset, random: np.random.Generator) -> np.ndarray:
    """``(images,)`` indices in a new order.

    Uniform over all orders without shards. Shards are read in a random order, about
    :data:`WINDOW` of their images shuffled at a time. The parts of a ``ConcatDataset`` are
    interleaved at random through the epoch.
    """
    parts = parts_of(data)
    if all(getattr(part, "blocks", None) is None for part in parts):
        order = np.arange(sum(map(len, parts)))
        random.shuffle(order)
        return order
    turns = random.permutation(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
    order = np.empty(len(turns), dtype=np.int64)
    first = 0
    for number, part in enumerate(parts):
        blocks = getattr(part, "blocks", None)
        drawn = random.permutation(len(part)) if blocks is None else _by_block(blocks, random)
        order[turns == number] = first + drawn
        first += len(part)
    return order


def _by_block(blocks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    turn = random.permutation(int(blocks.max()) + 1)[blocks]
    rows = np.argsort(turn, kind="stable")  # shard after shard
    begin = np.searchsorted(turn[rows], turn[rows])  # where an image's shard begins
    return rows[np.lexsort((random.random(len(rows)), begin // WINDOW))]


def begun(data: Dataset, order: np.ndarray, position: int) -> tuple[str, ...]:
    """The shards with images both before a position of an order and from it on."""
    names: list[str] = []
    first = 0
    for part in parts_of(data):
        blocks = getattr(part, "blocks", None)
        if blocks is not None:
            mine = (order >= first) & (order < first + len(part))
            before = np.arange(len(order)) < position
            seen, unseen = (blocks[order[mine & half] - first] for half in (before, ~before))
            names += [part.block_names[block] for block in np.intersect1d(seen, unseen)]
        first += len(part)
    return tuple(names)
