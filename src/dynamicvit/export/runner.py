"""What a runtime is to us: a function from a batch to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Runner = Callable[[Tensor], Sequence[Tensor]]
"""From images ``(B, channels, height, width)``, float32, contiguous and on the CPU, to the outputs
that :attr:`~dynamicvit.export.Description.outputs` names."""
