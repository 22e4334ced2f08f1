"""A model as a file for the runtimes that people deploy: one file here to each target."""

from dynamicvit.export.comparison import CheckResult, ExportMismatchError, check
from dynamicvit.export.description import Description
from dynamicvit.export.quantization import Agreement, Int8Result, export_int8
from dynamicvit.export.reader import ExportedModel, load_exported
from dynamicvit.export.targets import FORMATS, format_of, is_exported
from dynamicvit.export.writer import export

__all__ = [
    "FORMATS",
    "Agreement",
    "CheckResult",
    "Description",
    "ExportMismatchError",
    "ExportedModel",
    "Int8Result",
    "check",
    "export",
    "export_int8",
    "format_of",
    "is_exported",
    "load_exported",
]
