"""OpenVINO's intermediate representation: an ``.xml`` file, and its weights in a ``.bin``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dynamicvit.errors import InputError
from dynamicvit.export.description import KEY, Description
from dynamicvit.export.runner import Runner
from dynamicvit.export.streams import in_streams
from dynamicvit.utils.optional import need
from dynamicvit.utils.weights import first_line

_EXTRA = "openvino"

#: What OpenVINO calls them.
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def ready() -> None:
    """See to it that OpenVINO is here.

    Raises:
        InputError: if it is missing.
    """
    need("openvino", _EXTRA)


def write(program: ExportedProgram, description: Description, path: Path) -> None:
    """Write the graph and, beside it, its weights in float32.

    Args:
        program: the graph.
        description: kept in the graph's ``rt_info``.
        path: of the ``.xml``.

    Raises:
        InputError: if OpenVINO does not know what the graph does.
    """
    openvino = need("openvino", _EXTRA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = openvino.convert_model(program)
        except Exception as error:  # its own classes, which it does not export
            reason = str(error).strip().splitlines()[-1:]
            raise InputError(f"OpenVINO can't convert this model ({' '.join(reason)})") from error
    model.reshape([description.batch or -1, *description.input_size])
    model.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, description.outputs, strict=True):
        output.get_tensor().set_names({name})
    model.set_rt_info(description.to_json(), [KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def read(path: Path, precision: str = "fp32") -> tuple[Runner, Description]:
    """The graph compiled for the CPU, with as many threads as torch has.

    Args:
        path: of the ``.xml``.
        precision: "fp32" or "bf16".

    Raises:
        InputError: if OpenVINO is missing or refuses the file, or for another precision.
    """
    if precision not in _PRECISIONS:
        raise InputError(f"{path} runs in {' or '.join(_PRECISIONS)}, not in {precision}")
    openvino = need("openvino", _EXTRA)
    core = openvino.Core()
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
        "INFERENCE_PRECISION_HINT": _PRECISIONS["bf16" if fast else precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    if description.batch is None:
        return in_streams(core, model, settings, description.outputs), description
    compiled = core.compile_model(model, "CPU", settings)

    def run(images: Tensor) -> list[Tensor]:
        found = compiled({"images": images.numpy()})
        return [torch.from_numpy(found[name].copy()) for name in description.outputs]

    return run, description


def _has_bf16(core: Any) -> bool:
    """Whether the CPU computes in bfloat16 itself."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
