"""Int8 for OpenVINO, by NNCF."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

from dynamicvit.export.description import KEY, Description
from dynamicvit.export.quantization.quantizer import EXTRA
from dynamicvit.utils.optional import need

#: What NNCF would quantize here: layers, attention's products, the likeness of tokens.
_PRODUCTS = ("MatMul", "Convolution", "ScaledDotProductAttention")


def ready() -> None:
    """See to it that NNCF is here."""
    need("openvino", EXTRA)
    with _quiet():
        need("nncf", EXTRA)


def quantize(
    source: Path,
    target: Path,
    description: Description,
    images: Tensor,
    layers: Mapping[str, str],
    in_float: frozenset[str],
) -> None:
    """Write an ``.xml`` in which layers compute in int8."""
    openvino = need("openvino", EXTRA)
    with _quiet():
        nncf = need("nncf", EXTRA)
        ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
        model = openvino.Core().read_model(source)
        chosen = {name for name, layer in layers.items() if layer not in in_float}
        spared = [name for name, of in _products(model) if of not in chosen]
        batches = list(images.split(description.batch or 1))
        whole = [batch.numpy() for batch in batches if len(batch) == len(batches[0])]
        advanced = nncf.AdvancedQuantizationParameters(
            # MLPs' hidden features have rare large values that carry the answer: means of maxima
            # cut them off, and smoothing moves the trouble into the weights.
            activations_range_estimator_params=ranges.MINMAX,
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        )
        quantized = nncf.quantize(
            model,
            nncf.Dataset(whole),
            subset_size=len(whole),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=spared, validate=False),
            advanced_parameters=advanced,
        )
    quantized.set_rt_info(description.to_json(), [KEY])
    openvino.save_model(quantized, target, compress_to_fp16=False)


def _products(model: Any) -> Iterator[tuple[str, str]]:
    """Each product's name, and what it was called when it was traced."""
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _PRODUCTS:
            name = operation.get_friendly_name()
            traced = name.partition("/")[0]
            # On its way into OpenVINO this operator gets its general form.
            yield name, traced.replace("convolution", "conv2d")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's progress bars and what it says about its insides."""
    logger = logging.getLogger("nncf")
    level = logger.level
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.getLogger("nncf").setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
