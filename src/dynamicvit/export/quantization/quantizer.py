"""The contract of what turns a float file into an int8 one: one module here to a format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dynamicvit.export.description import Description

#: The extra that installs what quantizers need.
EXTRA = "quant"


class Quantizer(Protocol):
    """Post-training quantization for one format."""

    def ready(self) -> None:
        """See to it that all it needs is here.

        Raises:
            InputError: if a package is missing.
        """

    def quantize(
        self,
        source: Path,
        target: Path,
        description: Description,
        images: Tensor,
        layers: Mapping[str, str],
        in_float: frozenset[str],
    ) -> None:
        """Write a file in which layers compute in int8.

        Args:
            source: the same in float.
            target: where to.
            description: of the new file.
            images: ``(B, channels, height, width)`` to calibrate on, normalized.
            layers: of :func:`~dynamicvit.export.quantization.layers.layers_of`.
            in_float: names of those that stay as they are.
        """
