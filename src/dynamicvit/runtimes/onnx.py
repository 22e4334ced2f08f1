"""ONNX: written by torch's exporter, run by ONNX Runtime, quantized by its static quantizer."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit.errors import InputError
from dynamicvit.runtimes.base import Format
from dynamicvit.runtimes.description import KEY, Description
from dynamicvit.runtimes.exported import Runner
from dynamicvit.runtimes.images import whole_batches
from dynamicvit.utils.optional import need, quiet
from dynamicvit.utils.words import first_line

#: The exporter's own, and the oldest supported: its files need no conversion.
OPSET = 18

#: Name of the images' first axis in a file for any number of images.
_BATCH = "batch"

#: What layers become in ONNX.
_PRODUCTS = ("MatMul", "Gemm", "Conv")

#: Key of a node's name in the traced graph, written by torch's exporter.
_SCOPES = "pkg.torch.onnx.name_scopes"


class ONNX(Format):
    """``.onnx`` files; weights beyond 2 GB go beside them."""

    name = "onnx"
    package = "onnxruntime"
    suffix = ".onnx"
    beside = "{name}.data"  # of large weights
    precisions = ("fp32", "int8")
    options = ("opset",)

    def ready(self, precision: str = "fp32") -> None:
        """Check that ONNX, its exporter and ONNX Runtime are installed."""
        packages = ["onnx", "onnxscript", "onnxruntime"]
        if precision == "int8":
            packages.append("onnxruntime.quantization")
        with quiet():
            for package in packages:
                need(package, "quant" if precision == "int8" else "onnx")

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Also check the opset."""
        super().check_options(options)
        opset = options.get("opset")
        if opset is None:
            return
        if opset < OPSET:
            raise InputError(f"opset {opset} is too old: give {OPSET} or later")
        newest = need("onnx", "onnx").defs.onnx_opset_version()
        if opset > newest:
            raise InputError(f"opset {opset}: the installed onnx has {OPSET} to {newest}")

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
            description: stored in the file.
            path: of the file.
            opset: version of the operators; by default :data:`OPSET`.
        """
        opset = OPSET if opset is None else opset
        # As when traced: with gradients attention has another memory layout.
        with quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
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
        if description.batch is None:  # torch names it s34 or the like
            shape = onnx.model.graph.inputs[0].shape
            assert shape is not None
            onnx.rename_axes({shape[0]: _BATCH})
        onnx.model.metadata_props[KEY] = description.to_json()
        onnx.save(path)

    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """Sessions on the CPU, one for any batch and one for a single image.

        With all shapes known more of the graph is fused, which saves a twentieth of the time, more
        with few tokens. This session is made when it is first needed, and holds the weights again.
        """
        runtime = need("onnxruntime", "onnx")
        threads = torch.get_num_threads()

        def session(single: bool) -> Any:
            options = runtime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            if single:
                options.add_free_dimension_override_by_name(_BATCH, 1)
            try:
                return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # of classes that it does not export
                reason = first_line(error)
                raise InputError(f"{path} can't be read by ONNX Runtime ({reason})") from error

        sessions = {False: session(single=False)}
        entries = sessions[False].get_modelmeta().custom_metadata_map
        description = Description.from_json(entries.get(KEY), path)

        def run(images: Tensor) -> list[Tensor]:
            single = len(images) == 1 and description.batch is None
            if single not in sessions:
                sessions[single] = session(single)
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
            batches = whole_batches(images, description.batch)
            feeds = iter([{"images": batch} for batch in batches])
            with quiet():  # it advises to optimize the graph first, which would rename its nodes
                quantizer = need("onnxruntime.quantization", "quant")
                quantizer.quantize_static(
                    source,
                    target,
                    SimpleNamespace(get_next=lambda: next(feeds, None)),
                    op_types_to_quantize=list(_PRODUCTS),
                    nodes_to_quantize=names,
                    per_channel=True,
                    activation_type=quantizer.QuantType.QUInt8,
                    weight_type=quantizer.QuantType.QInt8,
                    # Rounding outputs as well would cost accuracy at every residual.
                    extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
                )
            model = onnx.load(target)
            _keep_biases_apart(model)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, {**properties, KEY: description.to_json()})
        onnx.save(model, target)


def _keep_biases_apart(model: Any) -> None:
    """Give biases of products of three axes three axes, ``(1, 1, N)``.

    For known shapes ONNX Runtime fuses a product with a bias of one axis into an operator that has
    no int8, so that weights become floats at every call. It leaves a bias of three axes alone.
    """
    graph = model.graph
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul"}
    products = {name for name in products if axes.get(name) == 3}
    biases = {
        name
        for node in graph.node
        if node.op_type == "Add" and products.intersection(node.input)
        for name in node.input
    }
    elsewhere = {
        name
        for node in graph.node
        if node.op_type != "Add" or not products.intersection(node.input)
        for name in node.input
    }
    for tensor in graph.initializer:
        if tensor.name in biases - elsewhere and len(tensor.dims) == 1:
            tensor.dims[:0] = [1, 1]


def _products(model: Any, chosen: Collection[str]) -> Iterator[Any]:
    """The nodes of some products, by the products' names in the traced graph."""
    for node in model.graph.node:
        properties = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(properties.get(_SCOPES, "['']"))
        if node.op_type in _PRODUCTS and scopes[-1] in chosen:
            yield node
