"""MACs of what runs, by torch's formulas for its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def counted_macs(run: Callable[[], object]) -> int:
    """MACs of what runs on the meta device."""
    with counting() as counter:
        run()
    return counter.total // 2


@contextmanager
def counting() -> Iterator[_Flops]:
    """Count what runs on the meta device, where many shapes come without torch's slow Python."""
    # Torch has no formula for fused attention on the CPU in some releases. The math backend takes
    # attention apart into matrix products, which every release counts.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        _Flops() as counter,
    ):
        yield counter


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")  # faster than to ask a tensor for one


def _as_first(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _empty(x.shape, x.dtype)


def _floating(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _empty(x.shape, x.dtype if x.is_floating_point() else torch.get_default_dtype())


def _shape_of_two(x: Tensor, y: Any) -> Sequence[int]:
    return torch.broadcast_shapes(x.shape, y.shape) if isinstance(y, Tensor) else x.shape


def _of_two(x: Tensor, y: Any, *args: Any, **kwargs: Any) -> Tensor:
    return _empty(_shape_of_two(x, y), torch.result_type(x, y))


def _compared(x: Tensor, y: Any) -> Tensor:
    return _empty(_shape_of_two(x, y), torch.bool)


def _quotient(x: Tensor, y: Any) -> Tensor:
    return _floating(_of_two(x, y))


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    first = parts[0]
    if any(part.dtype != first.dtype or part.ndim != first.ndim for part in parts):
        return _aten.cat.default(parts, dim)
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _empty(shape, first.dtype)


def _norm(x: Tensor, order: Any = 2, dim: Any = (), keepdim: bool = False, **_: Any) -> Tensor:
    return torch.amax(x, dim or (), keepdim)


def _arange(end: float, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _empty([ceil(end)], dtype or torch.tensor(end).dtype)


_aten = torch.ops.aten

#: What comes out of operations whose shapes torch works out in Python, for most of a count's time.
#: Nobody looks at a norm's statistics; not every release has a safe softmax.
_OUTCOMES: dict[Any, Callable[..., Any]] = {
    _aten.addmm.default: lambda bias, x, weight: _empty((len(x), weight.shape[1]), x.dtype),
    _aten.native_layer_norm.default: lambda x, *_: (_as_first(x), x, x),
    **{
        getattr(_aten, name).default: _as_first
        for name in ("gelu", "clamp", "_softmax", "_safe_softmax")
        if hasattr(_aten, name)
    },
    **{getattr(_aten, name).Tensor: _of_two for name in ("add", "sub", "mul")},
    _aten.mul.Scalar: _of_two,
    _aten.rsub.Scalar: _of_two,
    _aten.masked_fill.Scalar: lambda x, mask, value: _empty(_shape_of_two(x, mask), x.dtype),
    **{
        getattr(getattr(_aten, name), other): _compared
        for name in ("eq", "lt", "gt")
        for other in ("Scalar", "Tensor")
    },
    _aten.div.Tensor: _quotient,
    _aten.log.default: _floating,
    _aten.cat.default: _joined,
    _aten.gather.default: lambda x, dim, index, **_: _empty(index.shape, x.dtype),
    _aten.linalg_vector_norm.default: _norm,
    _aten.arange.default: _arange,
}

#: Operations that are made of no others: asked once, because that takes as long as they do.
_WHOLE: set[Any] = set()


class _Flops(TorchDispatchMode):
    """Adds up torch's formulas; its own counter would watch modules too, those of all threads."""

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs, formula = kwargs or {}, flop_registry.get(func.overloadpacket)
        if formula is None and func not in _WHOLE:
            with self:  # what it is made of may have one
                made_of = func.decompose(*args, **kwargs)
            if made_of is not NotImplemented:
                return made_of
            _WHOLE.add(func)
        known = _OUTCOMES.get(func)
        out = func(*args, **kwargs) if known is None else known(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
