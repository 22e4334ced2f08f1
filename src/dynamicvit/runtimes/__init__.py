"""What runs a network: PyTorch, and the runtimes of exported files; one class for each.

A format writes, reads, quantizes and runs its files (:class:`~dynamicvit.runtimes.base.Format`).
"""

from dynamicvit.runtimes.base import Format, Runtime
from dynamicvit.runtimes.comparison import Agreement, Check, ExportMismatchError, check
from dynamicvit.runtimes.description import Description
from dynamicvit.runtimes.exported import ExportedModel
from dynamicvit.runtimes.images import CALIBRATION_IMAGES
from dynamicvit.runtimes.registry import (
    FORMATS,
    PRECISIONS,
    RUNTIMES,
    format_of,
    is_exported,
    load_exported,
)
from dynamicvit.runtimes.writer import Exported, export

__all__ = [
    "CALIBRATION_IMAGES",
    "FORMATS",
    "PRECISIONS",
    "RUNTIMES",
    "Agreement",
    "Check",
    "Description",
    "ExportMismatchError",
    "Exported",
    "ExportedModel",
    "Format",
    "Runtime",
    "check",
    "export",
    "format_of",
    "is_exported",
    "load_exported",
]
