"""Importing this module registers every command on the app."""

from dynamicvit.cli import (
    backbones,
    bench,
    compare,
    convert,
    demo,
    evaluate,
    export,
    stream,
    train,
    visualize,
)

__all__ = [
    "backbones",
    "bench",
    "compare",
    "convert",
    "demo",
    "evaluate",
    "export",
    "stream",
    "train",
    "visualize",
]
