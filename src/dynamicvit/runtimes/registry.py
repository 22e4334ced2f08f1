"""All runtimes and formats by name. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamicvit.errors import InputError
from dynamicvit.runtimes.base import Format, Runtime
from dynamicvit.runtimes.exported import ExportedModel
from dynamicvit.runtimes.onnx import ONNX
from dynamicvit.runtimes.openvino import OpenVINO
from dynamicvit.runtimes.pt2 import AOTInductor, TorchExport
from dynamicvit.runtimes.pytorch import Compiled, Eager, OneDNN

#: What writes and runs files. Of two with the same suffix the first is meant where only the file
#: is named.
FORMATS: dict[str, Format] = {
    each.name: each for each in (ONNX(), OpenVINO(), TorchExport(), AOTInductor())
}

#: What runs networks: the formats too, of the network's file.
RUNTIMES: dict[str, Runtime] = {
    each.name: each for each in (Eager(), Compiled(), OneDNN(), *FORMATS.values())
}

#: All that some runtime computes in.
PRECISIONS = tuple(dict.fromkeys(name for each in RUNTIMES.values() for name in each.precisions))


def format_of(path: str | Path, name: str | None = None) -> Format:
    """The format of a file: the one that is named, or that of its suffix.

    Raises:
        InputError: for an unknown format, or a suffix that does not go with it.
    """
    suffix = Path(path).suffix.lower()
    if name is not None and name not in FORMATS:
        raise InputError(f"format {name!r}: give one of {', '.join(FORMATS)}")
    for each in FORMATS.values():
        if suffix == each.suffix and name in (None, each.name):
            return each
    suffixes = [FORMATS[name].suffix] if name else [each.suffix for each in FORMATS.values()]
    kind = f"a file of format {name}" if name else "an exported file"
    raise InputError(f"{path}: {kind} ends in {', '.join(dict.fromkeys(suffixes))}")


def is_exported(name: Any) -> bool:
    """Whether this names an exported file, by its suffix."""
    return Path(str(name)).suffix.lower() in {each.suffix for each in FORMATS.values()}


def load_exported(path: str | Path, precision: str = "fp32") -> ExportedModel:
    """A file that :func:`~dynamicvit.runtimes.export` wrote, ready to run on the CPU.

    Args:
        path: its ``.onnx``, ``.xml`` or ``.pt2``. A ``.pt2`` may hold code: open your own only.
        precision: "fp32", as files are checked; or "bf16", which OpenVINO has. Patches whose keep
            scores are near each other are then ranked otherwise.

    Raises:
        InputError: if there is no such file, it is not one of ours, its runtime is missing or does
            not compute in this precision.
    """
    return format_of(path).load(path, precision)
