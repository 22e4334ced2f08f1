"""A network that a file describes takes no more memory than its weights say, however absurd."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dynamicvit.errors import InputError

#: What makes tensors from sizes alone.
_MAKERS = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye),
    *(torch.arange, torch.linspace, torch.logspace, torch.randint, torch.randperm),
    *(torch.empty_strided, torch.normal),
}
#: Numbers beside those of the weights: tables of positions, and what making weights takes.
_SPARE = 1 << 26


@contextmanager
def room_for(weights: Iterable[Path]) -> Iterator[None]:
    """Within the block tensors are made for as many numbers as the files have bytes, and a few.

    The bytes are some times the numbers. What would take more is refused before it is made: nothing
    in a config says for sure how much memory a network takes, but its making.

    Args:
        weights: files of the network that is made.

    Raises:
        InputError: for more.
    """
    files = [path for path in weights if path.is_file()]
    with _Counted(_SPARE + sum(path.stat().st_size for path in files)):
        yield


class _Counted(TorchFunctionMode):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = self.most = most

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS and kwargs.get("out") is None:
            self.left -= func(*args, **{**kwargs, "device": "meta"}).numel()
            if self.left < 0:
                raise InputError(
                    f"its network is larger than its weights: more than {self.most:,} numbers"
                )
        return func(*args, **kwargs)
