"""Families and methods of one's own: modules that register them when they are imported."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from importlib.metadata import entry_points

from dynamicvit.errors import InputError

_log = logging.getLogger(__name__)

GROUP = "dynamicvit.plugins"
"""Entry points under which an installed package names such modules."""

#: Modules of ``--import``, for the processes that a command starts.
_VARIABLE = "DYNAMICVIT_IMPORT"

_loaded: list[bool] = []


def load_plugins() -> None:
    """Import what installed packages and ``--import`` name, once; a log tells what can't be."""
    if _loaded:
        return
    _loaded.append(True)  # before the work: a plugin may ask for a family itself
    for name in filter(None, os.environ.get(_VARIABLE, "").split(",")):
        import_plugin(name)
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # another's package must not take ours with it
            package = entry.dist.name if entry.dist else "an installed package"
            _log.warning("%s: its plugin %s can't be imported (%s)", package, entry.value, error)


def import_plugin(name: str) -> None:
    """Import a module that registers families or methods, here and in processes started from here.

    Args:
        name: of an installed module, or of one in the current folder.

    Raises:
        InputError: if it can't be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        import_module(name)
    except Exception as error:  # a module of the user's may raise anything
        raise InputError(f"module {name!r} can't be imported ({error})") from error
    names = [*filter(None, os.environ.get(_VARIABLE, "").split(",")), name]
    os.environ[_VARIABLE] = ",".join(dict.fromkeys(names))
