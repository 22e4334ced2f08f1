"""Small released ConvNeXt and Swin whose weights and images come from a seed, for recordings.

Python's generator gives the same numbers everywhere, so the recordings hold results alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from released_state import Shapes, convnext_shapes, swin_shapes

SIDE = 128
N = (SIDE // 16) ** 2


@dataclass(frozen=True)
class Small:
    """One network.

    Attributes:
        name: of its recording.
        shapes: of its weights, by the released names.
        heads: of a Swin's stages.
        window: side of a Swin's windows.
        seed: of weights and images; at which no two scores at a cut are alike.
    """

    name: str
    shapes: Shapes
    heads: tuple[int, ...] = ()
    window: int = 4
    seed: int = 0

    def weights(self) -> dict[str, Tensor]:
        """By the released names; at which no error hides."""
        return {n: self._weight(n, shape) for n, shape in self.shapes.items()}

    def _weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        values = self._uniform(name, *shape)
        if "gamma" in name:
            return 0.5 + 0.2 * values
        if len(shape) == 1:
            return values * 0.3 + (1.0 if "norm" in name and "weight" in name else 0.0)
        spread = 4.0 if "out_conv.4" in name else 1.0  # scores well apart
        return values * spread * math.sqrt(3 / math.prod(shape[1:]))

    def _uniform(self, name: str, *shape: int) -> Tensor:
        draw = random.Random(f"{self.name} {self.seed} {name}").random
        values = [2 * draw() - 1 for _ in range(math.prod(shape))]
        return torch.tensor(values, dtype=torch.float32).reshape(shape)

    def recording(self) -> dict[str, Tensor]:
        """With weights and images, by the names of the large recordings."""
        found = load_file(Path(__file__).parent / "golden" / f"{self.name}.safetensors")
        found |= {f"model.{name}": value for name, value in self.weights().items()}
        return {**found, "input": self.images(), "train.draw": self.draw()}

    def __str__(self) -> str:
        return f"small_{self.name}"

    def images(self) -> Tensor:
        """``(2, 3, 128, 128)``."""
        return 1.7 * self._uniform("images", 2, 3, SIDE, SIDE)

    def draw(self) -> Tensor:
        """``(2, 64)`` of 0 and 1."""
        return (self._uniform("draw", 2, N) > 0).float()


SMALL = {
    "dyconvnext": Small("dyconvnext", convnext_shapes((1, 1, 5, 1), 4, 1, 10), seed=8),
    "dyswin": Small(
        "dyswin", swin_shapes((2, 2, 6, 2), 4, 1, 1, 10, window=4), (1, 2, 4, 8), seed=11
    ),
}
