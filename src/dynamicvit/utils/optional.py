"""Packages that only some features need, and what they print."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from dynamicvit.errors import InputError


def need(package: str, extra: str) -> Any:
    """Import a package, or a module that needs one.

    Args:
        package: its name.
        extra: the extra of dynamicvit that installs it.

    Raises:
        InputError: with the command that installs it, if it is missing or broken.
    """
    collecting = gc.isenabled()
    gc.disable()  # nothing is garbage yet, and looking for it takes a tenth of the time
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"{package} can't be imported ({error}); it comes with dynamicvit[{extra}]: "
            f"pip install '.[{extra}]' in a clone"
        ) from error
    finally:
        if collecting:
            gc.enable()


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Silence warnings, and loggers (by default the root logger) below errors."""
    loggers = [logging.getLogger(name) for name in names or (None,)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
