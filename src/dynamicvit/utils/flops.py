"""MACs of what runs, by torch's formulas for its operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def counted_macs(run: Callable[[], object]) -> int:
    """MACs of what runs on the meta device."""
    # Torch has no formula for fused attention on the CPU in some releases. The math backend takes
    # attention apart into matrix products, which every release counts.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _Flops() as counter,
    ):
        run()
    return counter.total // 2


def _as_first(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.empty_like(x)


def _of_two(x: Tensor, y: Any, **kwargs: Any) -> Tensor:
    shape = torch.broadcast_shapes(x.shape, y.shape) if isinstance(y, Tensor) else x.shape
    return torch.empty(shape, dtype=torch.result_type(x, y), device="meta")


_aten = torch.ops.aten

#: What comes out of operations whose shapes torch works out in Python, for most of a count's time.
#: Nobody looks at a norm's statistics; not every release has a safe softmax.
_OUTCOMES: dict[Any, Callable[..., Any]] = {
    _aten.addmm.default: lambda bias, x, weight: x.new_empty(x.shape[0], weight.shape[1]),
    _aten.native_layer_norm.default: lambda x, *_: (torch.empty_like(x), x, x),
    **{
        getattr(_aten, name).default: _as_first
        for name in ("gelu", "clamp", "_softmax", "_safe_softmax")
        if hasattr(_aten, name)
    },
    **{getattr(_aten, name).Tensor: _of_two for name in ("add", "sub", "mul")},
}


class _Flops(TorchDispatchMode):
    """Adds up torch's formulas; its own counter would watch modules too, those of all threads."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, formula = kwargs or {}, flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:  # what it is made of may have one
                made_of = func.decompose(*args, **kwargs)
            if made_of is not NotImplemented:
                return made_of
        known = _OUTCOMES.get(func)
        out = func(*args, **kwargs) if known is None else known(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
