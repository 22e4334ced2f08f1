"""Names of version 0.1.0: using one says what it is called now."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

from dynamicvit.errors import InputError

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Renamed:
    """An attribute that has another name now.

    Reading it raises no AttributeError: ``nn.Module`` would put its own in that one's place.

    Args:
        now: what to use instead.
    """

    def __init__(self, now: str) -> None:
        self._now = now

    def __set_name__(self, owner: type, name: str) -> None:
        self._said = f"{owner.__name__}.{name} is now {self._now}"

    def __get__(self, instance: object, owner: type) -> Renamed:
        if instance is None:
            return self
        raise InputError(self._said)

    def __set__(self, instance: object, value: object) -> NoReturn:
        raise InputError(self._said)


def renamed_arguments(**now: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A function that names the new argument where an old one is given.

    Args:
        **now: for each old name, what to write instead.
    """

    def wrap(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for name in now.keys() & kwargs.keys():
                raise InputError(f"{function.__name__}({name}=) is now {now[name]}")
            return function(*args, **kwargs)

        return call

    return wrap
