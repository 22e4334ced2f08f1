"""All runtimes and formats by name."""

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

#: Of formats with the same suffix the first is the default.
FORMATS: dict[str, Format] = {
    each.name: each for each in (ONNX(), OpenVINO(), TorchExport(), AOTInductor())
}

#: All runtimes; those of formats run a network's exported file.
RUNTIMES: dict[str, Runtime] = {
    each.name: each for each in (Eager(), Compiled(), OneDNN(), *FORMATS.values())
}

#: Those of any runtime.
PRECISIONS = tuple(dict.fromkeys(name for each in RUNTIMES.values() for name in each.precisions))


def format_of(path: str | Path, name: str | None = None) -> Format:
    """The format of a file, by its suffix or by the name of the format.

    Raises:
        InputError: for an unknown format, or a suffix that the format does not have.
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
    """Whether a name is an exported file's, by its suffix."""
    return Path(str(name)).suffix.lower() in {each.suffix for each in FORMATS.values()}


def load_exported(path: str | Path, precision: str = "fp32") -> ExportedModel:
    """A file of :func:`~dynamicvit.runtimes.export`, ready to run on the CPU.

    Args:
        path: the ``.onnx``, ``.xml`` or ``.pt2``. A ``.pt2`` may hold code: load only files that
            you trust.
        precision: "fp32", in which files are checked; or "bf16" for OpenVINO, which ranks patches
            of similar keep scores differently.

    Raises:
        InputError: if the file does not exist or was not written by ``export``, or its runtime is
            missing or lacks the precision.
    """
    return format_of(path).load(path, precision)
