"""Which network of the paper a state dict is of, or most like where it is of none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dynamicvit.checkpoints.released.layouts import (
    Layout,
    count,
    match_layout,
    nearest_layout,
    released_name,
)
from dynamicvit.checkpoints.released.shapes import Shapes
from dynamicvit.checkpoints.released.zoo import ARCHITECTURES, Architecture, architecture_of
from dynamicvit.errors import InputError
from dynamicvit.utils.weights import first_few


@dataclass(frozen=True)
class Known:
    """A network of the paper, for images of one size.

    Attributes:
        architecture: the row of the paper's tables.
        image_size: side of the images in pixels.
    """

    architecture: Architecture
    image_size: int

    def __str__(self) -> str:
        name = self.architecture.timm_name(self.image_size) or self.architecture.model
        return f"{name}, for images of {self.image_size} px"


def known_network(tensors: Mapping[str, Tensor]) -> Known | None:
    """The backbone of the paper's tables that has these names and shapes, if there is one.

    Args:
        tensors: of a dense network or a DynamicViT, under the released names or this library's.
    """
    released = {released_name(name): tensor for name, tensor in tensors.items()}
    layout = match_layout(released)
    if layout is None:
        return None
    try:
        shapes = Shapes.read(released, layout, "")
    except InputError:
        return None
    architecture = architecture_of(layout.name, shapes.width, shapes.depth)
    return architecture and Known(architecture, shapes.grid * shapes.patch[0])


@dataclass(frozen=True)
class Likeness:
    """What of a state dict is understood where it is of no known network.

    Attributes:
        layout: whose names are the most similar.
        architecture: of that layout, with the most similar width and depth; ``None`` where no
            block is understood, so that nothing is near.
        understood: names that the layout has too.
        missing: names that only the layout has.
        strange: names that only the state dict has.
    """

    layout: Layout
    architecture: Architecture | None
    understood: list[str]
    missing: list[str]
    strange: list[str]

    @property
    def nearest(self) -> str:
        """The nearest network in words; empty where nothing is near."""
        row = self.architecture
        return f"nearest is {self.layout.of(row.name)} ({row.model})" if row else ""

    def __str__(self) -> str:
        size = len(self.understood) + len(self.strange)
        parts = (
            first_few(f"{len(self.understood)} of its {size} names understood:", self.understood, 1)
            or f"none of its {size} names understood",
            first_few("missing", self.missing if self.nearest else []),
            first_few("not understood", self.strange),
        )
        understood = "; ".join(part for part in parts if part)
        return f"{self.nearest}: {understood}" if self.nearest else understood


def likeness(tensors: Mapping[str, Tensor]) -> Likeness:
    """What of a state dict is understood, and the architecture that it is nearest to.

    Args:
        tensors: under the released names.
    """
    layout = nearest_layout(tensors)
    expected = layout.expected(tensors)
    understood = [name for name in tensors if name in expected]
    near = any(name.startswith("blocks.") for name in understood)
    return Likeness(
        layout,
        _nearest_architecture(tensors, layout) if near else None,
        understood,
        missing=[name for name in expected if name not in tensors],
        strange=[name for name in tensors if name not in expected],
    )


def _nearest_architecture(tensors: Mapping[str, Tensor], layout: Layout) -> Architecture:
    """The row of the tables in this layout with the most similar width and depth."""
    norms = (t for n, t in tensors.items() if n.endswith(("norm1.weight", "norm2.weight")))
    width = next((norm.shape[0] for norm in norms if norm.ndim == 1), 0)
    depth = count(tensors, "blocks")

    def distance(row: Architecture) -> float:
        sides = [(depth, row.depth)] + ([(width, row.width)] if width else [])
        return sum(abs(math.log(side / known)) for side, known in sides)

    return min((row for row in ARCHITECTURES if row.layout == layout.name), key=distance)
