"""ONNX, written by torch's exporter and run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit.errors import InputError
from dynamicvit.export.description import KEY, Description
from dynamicvit.export.runner import Runner, only_fp32
from dynamicvit.utils.optional import need
from dynamicvit.utils.weights import first_line

#: The exporter's own, and the least that is supported: what it writes needs no conversion.
OPSET = 18

_EXTRA = "onnx"

#: Name of the images' first axis, where a file takes any number.
_BATCH = "batch"

#: What ONNX Runtime must leave alone in int8: where shapes are known it makes one operation of a
#: product and its bias, which it then computes in float, with weights made floats at every call.
_NOT_IN_INT8 = ("MatMulAddFusion",)


def ready() -> None:
    """See to it that ONNX files can be written, and run to be checked.

    Raises:
        InputError: if a package is missing.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, _EXTRA)


def write(
    program: ExportedProgram, description: Description, path: Path, opset: int | None = None
) -> None:
    """Write a ``.onnx`` file; weights beyond 2 GB go beside it.

    Args:
        program: the graph.
        description: kept in ``metadata_props``.
        path: where to.
        opset: version of the operators; by default :data:`OPSET`.

    Raises:
        InputError: if the exporter does not write this opset.
    """
    opset = OPSET if opset is None else opset
    # With gradients attention would lie in memory in another way than when it was traced.
    with _quiet(), torch.no_grad():
        onnx = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=description.outputs,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert onnx is not None
    if onnx.model.opset_imports[""] != opset:
        raise InputError(f"torch {torch.__version__} writes no opset {opset}; {OPSET} it does")
    if description.batch is None:  # torch calls it s34 or the like
        shape = onnx.model.graph.inputs[0].shape
        assert shape is not None
        onnx.rename_axes({shape[0]: _BATCH})
    onnx.model.metadata_props[KEY] = description.to_json()
    onnx.save(path)


def check_opset(opset: int | None) -> None:
    """Refuse an opset that is too old.

    Raises:
        InputError: naming it.
    """
    if opset is not None and opset < OPSET:
        raise InputError(f"opset {opset} is too old: {OPSET} or later")


def read(path: Path, precision: str = "fp32") -> tuple[Runner, Description]:
    """Sessions on the CPU, with as many threads as torch has.

    One image gets a session of its own, whose shapes are all known: more of the graph is fused
    there, which takes a twentieth of the time off, and weighs most where few tokens are left. It is
    made when it is first needed, and holds the weights once more.

    Args:
        path: of the ``.onnx``.
        precision: "fp32", for ONNX Runtime computes on CPUs in what the file holds.

    Raises:
        InputError: if ONNX Runtime is missing, refuses the file or has not this precision.
    """
    only_fp32(path, precision)
    runtime = need("onnxruntime", _EXTRA)
    threads = torch.get_num_threads()

    def session(single: bool, without: tuple[str, ...] = ()) -> Any:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if single:
            options.add_free_dimension_override_by_name(_BATCH, 1)
        try:
            return runtime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
            )
        except Exception as error:  # its own classes, which it does not export
            reason = first_line(error)
            raise InputError(f"{path} can't be read by ONNX Runtime ({reason})") from error

    sessions = {False: session(single=False)}
    entries = sessions[False].get_modelmeta().custom_metadata_map
    description = Description.from_json(entries.get(KEY), path)
    without = _NOT_IN_INT8 if description.precision == "int8" else ()
    if without and description.batch is not None:
        sessions[False] = session(single=False, without=without)

    def run(images: Tensor) -> list[Tensor]:
        single = len(images) == 1 and description.batch is None
        if single not in sessions:
            sessions[single] = session(single, without)
        found = sessions[single].run(description.outputs, {"images": images.numpy()})
        return [torch.from_numpy(value) for value in found]

    return run, description


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
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
