"""Int8 for ONNX Runtime, by its own static quantizer."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from dynamicvit.export.description import KEY, Description
from dynamicvit.export.quantization.quantizer import EXTRA
from dynamicvit.utils.optional import need

#: What layers become in ONNX.
_PRODUCTS = ("MatMul", "Gemm", "Conv")

#: Where torch's exporter wrote down what a node was called when it was traced.
_SCOPES = "pkg.torch.onnx.name_scopes"


def ready() -> None:
    """See to it that ONNX Runtime's quantizer is here."""
    need("onnx", EXTRA)
    with _quiet():
        need("onnxruntime.quantization", EXTRA)


def quantize(
    source: Path,
    target: Path,
    description: Description,
    images: Tensor,
    layers: Mapping[str, str],
    in_float: frozenset[str],
) -> None:
    """Write a ``.onnx`` in which layers compute in int8 between Q and DQ nodes."""
    onnx = need("onnx", EXTRA)
    chosen = {name for name, layer in layers.items() if layer not in in_float}
    model = onnx.load(source)
    names = [node.name for node in _products(model, chosen)]
    with _quiet():
        quantization: Any = need("onnxruntime.quantization", EXTRA)
        batches = (batch.numpy() for batch in images.split(description.batch or 1))
        wanted = description.batch or 1
        reader = _Reader(batch for batch in batches if len(batch) == wanted)
        if names:  # none would mean all
            quantization.quantize_static(
                source,
                target,
                reader,
                op_types_to_quantize=list(_PRODUCTS),
                nodes_to_quantize=names,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice to optimize the graph first, which would rename its nodes."""
    level = logging.getLogger().level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger().setLevel(logging.ERROR)
            yield
    finally:
        logging.getLogger().setLevel(level)
