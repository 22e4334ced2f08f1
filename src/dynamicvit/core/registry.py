"""The methods by name. One of your own is a class and a line: docs/adding-a-method.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from dynamicvit.core.method import Method
from dynamicvit.core.schedule import Policy
from dynamicvit.errors import InputError
from dynamicvit.utils.plugins import import_plugin, load_plugins
from dynamicvit.utils.words import shortened

_Kind = TypeVar("_Kind", bound=type[Method])

#: Names of 0.1.0, and what they are now.
_RENAMED = {
    "dynamic": "dynamicvit",
    "attention": "class-attention",
    "attention-fused": "evit",
    "downsampling": "downsample",
    "merging": "tome",
    "width": "narrow",
}

_methods: dict[str, type[Method]] = {}

METHODS: Mapping[str, type[Method]] = MappingProxyType(_methods)
"""Every method by its name, the paper's first."""


def register_method(name: str, does: str, paper: str = "") -> Callable[[_Kind], _Kind]:
    """Give a class of method a name, by which ``sparsify`` and ``dynamicvit compare`` take it.

    One of the same name is replaced.

    Args:
        name: short, as the field calls it.
        does: what it does, in a few words.
        paper: where it is from.

    Returns:
        A decorator of the class.
    """

    def register(kind: _Kind) -> _Kind:
        kind.name, kind.does, kind.paper = name, does, paper
        _methods[name] = kind
        return kind

    return register


def fate(method: str | None, policy: Policy) -> str:
    """What becomes of tokens that a method drops, in words that end a sentence on them.

    Args:
        method: its name; of an unknown one the policy alone tells.
        policy: for dropped tokens.
    """
    if policy == "cheap":
        return "take a cheap path"
    if METHODS.get(method or "", Method).merges:
        return "merge into kept ones"
    words = {"removed": "are removed", "bypassed": "skip blocks and come back to their places"}
    return words.get(policy, "merge into the most alike kept ones")


def method_named(name: str) -> type[Method]:
    """The method of that name; ``"package.module:name"`` imports the module first.

    Raises:
        InputError: listing the registered names, or naming the module that can't be imported.
    """
    load_plugins()
    module, _, own = str(name).rpartition(":")
    if module:
        import_plugin(module)
    return registered_method(own)


def registered_method(name: str) -> type[Method]:
    """The method of a name that a file says, which imports nothing.

    Raises:
        InputError: listing the registered names.
    """
    load_plugins()
    if name in _RENAMED:
        raise InputError(f"method {name!r} is called {_RENAMED[name]!r} now")
    if name not in METHODS:
        raise InputError(
            f"no method {shortened(name)}: one of {', '.join(METHODS)} "
            "(docs/adding-a-method.md adds one)"
        )
    return METHODS[name]
