"""The formats: which file endings they have, and who writes and reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamicvit.errors import InputError
from dynamicvit.export import onnx, openvino, package
from dynamicvit.export.description import Description
from dynamicvit.export.runner import Runner


@dataclass(frozen=True)
class Target:
    """A format.

    Attributes:
        suffix: how its files end.
        ready: raises an :class:`~dynamicvit.InputError` where the format can't be written.
        write: called with the graph, its description and the path; ONNX also with an opset.
        read: gives what runs the file in some precision, and its description.
    """

    suffix: str
    ready: Callable[[], None]
    write: Callable[..., None]
    read: Callable[[Path, str], tuple[Runner, Description]]


#: By name; of two with the same suffix the first is meant where only the file is named.
FORMATS: dict[str, Target] = {
    "onnx": Target(".onnx", onnx.ready, onnx.write, onnx.read),
    "openvino": Target(".xml", openvino.ready, openvino.write, openvino.read),
    "torch": Target(".pt2", package.ready, package.write, package.read),
    "aotinductor": Target(".pt2", package.ready_to_compile, package.write_compiled, package.read),
}


def format_of(path: str | Path, name: str | None = None) -> str:
    """The format of a file: the one that is named, or that of its suffix.

    Raises:
        InputError: for an unknown format, or a suffix that does not go with it.
    """
    suffix = Path(path).suffix.lower()
    if name is not None and name not in FORMATS:
        raise InputError(f"formats are {', '.join(FORMATS)}, got {name!r}")
    for known, target in FORMATS.items():
        if suffix == target.suffix and name in (None, known):
            return known
    if name is not None:
        raise InputError(f"{path}: a file of format {name} ends in {FORMATS[name].suffix}")
    suffixes = dict.fromkeys(target.suffix for target in FORMATS.values())
    raise InputError(f"{path}: an exported file ends in {', '.join(suffixes)}")


def is_exported(name: Any) -> bool:
    """Whether this names an exported file, by its suffix."""
    return Path(str(name)).suffix.lower() in {target.suffix for target in FORMATS.values()}
