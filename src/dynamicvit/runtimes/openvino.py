"""OpenVINO's intermediate representation: an ``.xml`` file and its weights in a ``.bin``."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
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

#: OpenVINO's names of precisions.
_HINTS = {"fp32": "f32", "bf16": "bf16"}

#: What NNCF would quantize here: layers, attention's products, the similarity of tokens.
_PRODUCTS = ("MatMul", "Convolution", "ScaledDotProductAttention")

#: Images that a thread takes at a time: their activations should fit into its cache.
MOST_AT_ONCE = 16


class OpenVINO(Format):
    """``.xml`` files, written with OpenVINO and quantized by NNCF."""

    name = "openvino"
    package = "openvino"
    suffix = ".xml"
    precisions = ("fp32", "bf16", "int8")

    def ready(self, precision: str = "fp32") -> None:
        """Check that OpenVINO is here, and NNCF for int8."""
        need("openvino", "quant" if precision == "int8" else "openvino")
        if precision == "int8":
            with _quiet():
                need("nncf", "quant")

    def write(self, program: ExportedProgram, description: Description, path: Path) -> None:
        """The description goes into the graph's ``rt_info``."""
        openvino = need("openvino", "openvino")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = openvino.convert_model(program)
            except Exception as error:  # its own classes, which it does not export
                reason = " ".join(str(error).strip().splitlines()[-1:])
                raise InputError(f"OpenVINO can't convert this model ({reason})") from error
        model.reshape([description.batch or -1, *description.input_size])
        model.inputs[0].get_tensor().set_names({"images"})
        for output, name in zip(model.outputs, description.outputs, strict=True):
            output.get_tensor().set_names({name})
        model.set_rt_info(description.to_json(), [KEY])
        openvino.save_model(model, path, compress_to_fp16=False)

    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """The graph compiled for the CPU."""
        core = need("openvino", "openvino").Core()
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise InputError(f"{path} can't be read by OpenVINO ({first_line(error)})") from error
        entry = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        description = Description.from_json(entry, path)
        # What an int8 file holds in float is no more exact in float32 than in what is fastest.
        fast = description.precision == "int8" and _has_bf16(core)
        # Left to itself it takes bfloat16 where the CPU has it, and ranks patches by that.
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS["bf16" if fast else precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if description.batch is None:
            return _in_streams(core, model, settings, description.outputs), description
        compiled = core.compile_model(model, "CPU", settings)

        def run(images: Tensor) -> list[Tensor]:
            found = compiled({"images": images.numpy()})
            return [torch.from_numpy(found[name].copy()) for name in description.outputs]

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
        """By NNCF; all but the chosen layers is named to it as ignored."""
        openvino = need("openvino", "quant")
        with _quiet():
            nncf = need("nncf", "quant")
            ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
            model = openvino.Core().read_model(source)
            chosen = {name for name, layer in layers.items() if layer not in in_float}
            ignored = [name for name, of in _products(model) if of not in chosen]
            batches = images.split(description.batch or 1)
            whole = [batch.numpy() for batch in batches if len(batch) == len(batches[0])]
            advanced = nncf.AdvancedQuantizationParameters(
                # MLPs' hidden features have rare large values that carry the answer: means of
                # maxima cut them off, and smoothing moves the trouble into the weights.
                activations_range_estimator_params=ranges.MINMAX,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            )
            quantized = nncf.quantize(
                model,
                nncf.Dataset(whole),
                subset_size=len(whole),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
                advanced_parameters=advanced,
            )
        quantized.set_rt_info(description.to_json(), [KEY])
        openvino.save_model(quantized, target, compress_to_fp16=False)


def _in_streams(core: Any, model: Any, settings: dict[str, Any], outputs: list[str]) -> Runner:
    """A runner for any number of images; it compiles for one, and for many, when first asked.

    Of a batch each thread takes images of its own: threads that share every layer wait for each
    other at its end, which took 1.4 to 1.8 times as long with two threads and 32 images
    (docs/quantization.md). One image can't be shared out, so all threads work on it.

    Args:
        core: OpenVINO's.
        model: with any number of images as input.
        settings: for the CPU.
        outputs: names of the outputs, in order.
    """
    threads = torch.get_num_threads()
    made: dict[str, Any] = {}

    def one(images: Tensor) -> list[Tensor]:
        if "one" not in made:
            single = model.clone()
            single.reshape([1, *images.shape[1:]])
            made["one"] = core.compile_model(single, "CPU", settings)
        found = made["one"]({"images": images.numpy()})
        return [torch.from_numpy(found[name].copy()) for name in outputs]

    def many(images: Tensor) -> list[Tensor]:
        if "many" not in made:
            compiled = core.compile_model(model, "CPU", {**settings, "NUM_STREAMS": threads})
            made["many"] = [compiled.create_infer_request() for _ in range(threads)]
        parts, found = shares(images, threads), []
        # No callbacks, and so no AsyncInferQueue: the network's end waits for its threads, and
        # those, to let go of a callback of Python's, for the interpreter, which waits for that end.
        for first in range(0, len(parts), threads):
            working = list(zip(made["many"], parts[first : first + threads], strict=False))
            for request, share in working:
                request.start_async({"images": share.numpy()})
            for request, _ in working:
                request.wait()
                tensors = (request.get_tensor(name).data for name in outputs)
                found.append([torch.from_numpy(tensor.copy()) for tensor in tensors])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    return lambda images: one(images) if len(images) == 1 else many(images)


def shares(images: Tensor, threads: int) -> tuple[Tensor, ...]:
    """The batch in as many pieces as there are threads, or more where they would be large."""
    share = min(MOST_AT_ONCE, -(-len(images) // threads))
    return images.split(share)


def _has_bf16(core: Any) -> bool:
    """Whether the CPU computes in bfloat16 itself."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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
