"""OpenVINO's intermediate representation: an ``.xml`` file and its weights in a ``.bin``."""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from threading import Lock
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
from dynamicvit.utils.signals import same_signal_stack
from dynamicvit.utils.words import first_line

#: OpenVINO's names of precisions.
_HINTS = {"fp32": "f32", "bf16": "bf16"}

#: What NNCF would quantize: layers, attention's products, the similarity of tokens.
_PRODUCTS = ("MatMul", "Convolution", "ScaledDotProductAttention")

#: Most images that a thread takes at a time: their activations should fit into its cache.
MOST_AT_ONCE = 16


class OpenVINO(Format):
    """``.xml`` files, written with OpenVINO and quantized by NNCF."""

    name = "openvino"
    package = "openvino"
    suffix = ".xml"
    precisions = ("fp32", "bf16", "int8")
    beside = "{stem}.bin"

    def ready(self, precision: str = "fp32") -> None:
        """Check that OpenVINO is installed, and NNCF for int8."""
        need("openvino", "quant" if precision == "int8" else "openvino")
        if precision == "int8":
            with quiet("nncf"), redirect_stdout(io.StringIO()):
                need("nncf", "quant")

    def write(self, program: ExportedProgram, description: Description, path: Path) -> None:
        """The description goes into the graph's ``rt_info``."""
        openvino = need("openvino", "openvino")
        with quiet("openvino", "torch"):  # NNCF, which it imports, has torch look for CUDA
            try:
                model = openvino.convert_model(program)
            except Exception as error:  # of classes that it does not export
                reason = " ".join(str(error).strip().splitlines()[-1:])
                raise InputError(f"OpenVINO can't convert this model ({reason})") from error
        model.reshape([description.batch or -1, *description.input_shape])
        model.inputs[0].get_tensor().set_names({"images"})
        for output, name in zip(model.outputs, description.outputs, strict=True):
            output.get_tensor().set_names({name})
        model.set_rt_info(description.to_json(), [KEY])
        _save(model, path)

    @same_signal_stack()
    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """The graph compiled for the CPU."""
        core = need("openvino", "openvino").Core()
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise InputError(f"{path} can't be read by OpenVINO ({first_line(error)})") from error
        entry = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        description = Description.from_json(entry, path)
        # Beside int8 layers float32 is no more exact than bfloat16.
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        fast = description.precision == "int8" and has_bf16
        # By default OpenVINO takes bfloat16 where the CPU has it, and would rank patches in it.
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS["bf16" if fast else precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if description.batch is None:
            return _in_streams(core, model, settings, description.outputs), description
        requests = _Requests(core.compile_model(model, "CPU", settings), description.outputs)
        return lambda images: requests(images)[0], description

    @same_signal_stack()
    def quantize(
        self,
        source: Path,
        target: Path,
        description: Description,
        images: Tensor,
        layers: Mapping[str, str],
        in_float: frozenset[str],
    ) -> None:
        """By NNCF; the products of all other layers are ignored by name."""
        openvino = need("openvino", "quant")
        with quiet("nncf"), redirect_stdout(io.StringIO()):  # progress bars, and remarks
            nncf = need("nncf", "quant")
            ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
            model = openvino.Core().read_model(source)
            chosen = {name for name, layer in layers.items() if layer not in in_float}
            ignored = [name for name, of in _products(model) if of not in chosen]
            batches = whole_batches(images, description.batch)
            advanced = nncf.AdvancedQuantizationParameters(
                # MLPs' hidden features have rare large values that matter: the mean of maxima
                # cuts them off, and smoothing moves the problem into the weights.
                activations_range_estimator_params=ranges.MINMAX,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            )
            quantized = nncf.quantize(
                model,
                nncf.Dataset(batches),
                subset_size=len(batches),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
                advanced_parameters=advanced,
            )
        quantized.set_rt_info(description.to_json(), [KEY])
        _save(quantized, target)


def _save(model: Any, path: Path) -> None:
    try:
        need("openvino", "openvino").save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # its "iostream error" names no cause
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.EIO, f"{first_line(error)}; {free / 1e6:.0f} MB are free", str(path)
        ) from error


class _Requests:
    """A compiled network, called from any number of threads: each call has requests of its own.

    A network that is called as OpenVINO gives it has one request, whose outputs another thread
    overwrites.

    Args:
        compiled: the network.
        outputs: names of its outputs.
    """

    def __init__(self, compiled: Any, outputs: list[str]) -> None:
        self._compiled, self._outputs = compiled, outputs
        self._free: list[Any] = []  # its methods are atomic

    def __call__(self, *parts: Tensor) -> list[list[Tensor]]:
        """For each part of a batch the outputs; the parts run at the same time."""
        requests = [self._request() for _ in parts]
        # No callbacks, so no AsyncInferQueue: the network's destructor waits for its threads, which
        # wait for the interpreter to release a callback, which waits for the destructor.
        for request, part in zip(requests, parts, strict=True):
            request.start_async({"images": part.numpy()})
        found = []
        for request in requests:
            request.wait()
            tensors = (request.get_tensor(name).data for name in self._outputs)
            found.append([torch.from_numpy(tensor.copy()) for tensor in tensors])
        self._free.extend(requests)
        return found

    def _request(self) -> Any:
        try:
            return self._free.pop()
        except IndexError:
            return self._compiled.create_infer_request()


def _in_streams(core: Any, model: Any, settings: dict[str, Any], outputs: list[str]) -> Runner:
    """A runner for any number of images; compiles for one, and for many, at the first call.

    Each thread takes images of its own: threads that share every layer wait for each other at its
    end, which took 1.4 to 1.8 times as long with two threads and 32 images (docs/notebook/int8.md).
    All threads work on a single image.

    Args:
        core: OpenVINO's.
        model: for any number of images.
        settings: for the CPU.
        outputs: names of the outputs.
    """
    threads = torch.get_num_threads()
    made: dict[bool, _Requests] = {}
    making = Lock()

    def requests(shape: torch.Size) -> _Requests:
        single = shape[0] == 1
        with making:
            if single not in made:
                own = {} if single else {"NUM_STREAMS": threads}
                network = model.clone()
                network.reshape([1 if single else -1, *shape[1:]])
                compiled = core.compile_model(network, "CPU", {**settings, **own})
                made[single] = _Requests(compiled, outputs)
        return made[single]

    def run(images: Tensor) -> list[Tensor]:
        parts, found = shares(images, threads), []
        for first in range(0, len(parts), threads):
            found += requests(images.shape)(*parts[first : first + threads])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    return run


def shares(images: Tensor, threads: int) -> tuple[Tensor, ...]:
    """The batch in a piece for each thread, or in more pieces if these would be large."""
    share = min(MOST_AT_ONCE, -(-len(images) // threads))
    return images.split(share)


def _products(model: Any) -> Iterator[tuple[str, str]]:
    """Each product's name, and its name in the traced graph."""
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in _PRODUCTS:
            name = operation.get_friendly_name()
            traced = name.partition("/")[0]
            # The conversion gives conv2d its general form.
            yield name, traced.replace("convolution", "conv2d")
