"""ONNX: written by torch's exporter, run by ONNX Runtime, quantized by its static quantizer."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit.errors import InputError
from dynamicvit.runtimes.base import Format
from dynamicvit.runtimes.description import KEY, Description
from dynamicvit.runtimes.exported import Runner
from dynamicvit.utils.optional import need
from dynamicvit.utils.weights import first_line

#: The exporter's own, and the least that is supported: what it writes needs no conversion.
OPSET = 18

#: Name of the images' first axis, where a file takes any number.
_BATCH = "batch"

#: What ONNX Runtime must leave alone in int8: where shapes are known it makes one operation of a
#: product and its bias, which it then computes in float, with weights made floats at every call.
_NOT_IN_INT8 = ("MatMulAddFusion",)

#: What layers become in ONNX.
_PRODUCTS = ("MatMul", "Gemm", "Conv")

#: Where torch's exporter wrote down what a node was called when it was traced.
_SCOPES = "pkg.torch.onnx.name_scopes"


class ONNX(Format):
    """``.onnx`` files; weights beyond 2 GB go beside them."""

    name = "onnx"
    package = "onnxruntime"
    suffix = ".onnx"
    precisions = ("fp32", "int8")
    options = ("opset",)

    def ready(self, precision: str = "fp32") -> None:
        """Check that files can be written, and run to be checked."""
        extra = "quant" if precision == "int8" else "onnx"
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need(package, extra)
        if precision == "int8":
            _quantizer()

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Also refuse an opset that is too old."""
        super().check_options(options)
        opset = options.get("opset")
        if opset is not None and opset < OPSET:
            raise InputError(f"opset {opset} is too old: give {OPSET} or later")

    def write(
        self,
        program: ExportedProgram,
        description: Description,
        path: Path,
        *,
        opset: int | None = None,
    ) -> None:
        """The description goes into ``metadata_props``.

        Args:
            program: the graph.
            description: kept inside the file.
            path: the file.
            opset: version of the operators; by default :data:`OPSET`.
        """
        opset = OPSET if opset is None else opset
        # With gradients attention would lie in memory in another way than when it was traced.
        with _quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
            onnx = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=description.outputs,
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        assert onnx is not None
        found = onnx.model.opset_imports[""]
        if found != opset:
            raise InputError(
                f"opset {opset}: torch {torch.__version__} writes {found} instead; give {OPSET}"
            )
        if description.batch is None:  # torch calls it s34 or the like
            shape = onnx.model.graph.inputs[0].shape
            assert shape is not None
            onnx.rename_axes({shape[0]: _BATCH})
        onnx.model.metadata_props[KEY] = description.to_json()
        onnx.save(path)

    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """Sessions on the CPU, which computes in what the file holds.

        One image gets a session of its own, whose shapes are all known: more of the graph is fused
        there, which takes a twentieth of the time off, and weighs most where few tokens are left.
        It is made when it is first needed, and holds the weights once more.
        """
        runtime = need("onnxruntime", "onnx")
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

    def quantize(
        self,
        source: Path,
        target: Path,
        description: Description,
        images: Tensor,
        layers: Mapping[str, str],
        in_float: frozenset[str],
    ) -> None:
        """Layers compute in int8 between Q and DQ nodes."""
        onnx = need("onnx", "quant")
        chosen = {name for name, layer in layers.items() if layer not in in_float}
        model = onnx.load(source)
        names = [node.name for node in _products(model, chosen)]
        if names:  # none would mean all
            quantizer = _quantizer()
            batches = images.split(description.batch or 1)
            whole = (batch.numpy() for batch in batches if len(batch) == len(batches[0]))
            # It advises to optimize the graph first, which would rename its nodes.
            with _quiet():
                quantizer.quantize_static(
                    source,
                    target,
                    _Reader(whole),
                    op_types_to_quantize=list(_PRODUCTS),
                    nodes_to_quantize=names,
                    per_channel=True,
                    activation_type=quantizer.QuantType.QUInt8,
                    weight_type=quantizer.QuantType.QInt8,
                    # Rounding a layer's output too would cost accuracy at every residual.
                    extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
                )
            model = onnx.load(target)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**properties, KEY: description.to_json()})
        onnx.save(model, target)


class _Reader:
    """What the quantizer asks for images.

    Args:
        batches: ``(B, channels, height, width)`` each.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch under the input's name, ``None`` after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}


def _products(model: Any, chosen: Collection[str]) -> Iterator[Any]:
    """The nodes that some products became, by what these were called when they were traced."""
    for node in model.graph.node:
        scopes = next(
            (entry.value for entry in node.metadata_props if entry.key == _SCOPES), "['']"
        )
        if node.op_type in _PRODUCTS and ast.literal_eval(scopes)[-1] in chosen:
            yield node


def _quantizer() -> Any:
    with _quiet():
        return need("onnxruntime.quantization", "quant")


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without warnings, and with errors only of some loggers; by default of the root logger."""
    loggers = [logging.getLogger(name) for name in names or (None,)]
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
