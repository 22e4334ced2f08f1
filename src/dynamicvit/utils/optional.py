"""Packages that only some features need."""

from __future__ import annotations

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
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"{package} can't be imported ({error}); pip install 'dynamicvit[{extra}]'"
        ) from error
