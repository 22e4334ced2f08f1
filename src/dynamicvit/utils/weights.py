"""Tensors from files: read without running code, loaded only where every name and shape fits."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dynamicvit.errors import InputError

#: Where training scripts put the state dict: timm's and DeiT's names.
WRAPPERS = ("state_dict", "model")
#: Where they put its moving average (EMA): timm's, DeiT's and two more.
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "module_ema", "ema")
#: What DistributedDataParallel and torch.compile put before every name.
NAME_PREFIXES = ("_orig_mod.", "module.")
#: Before the names of the trained network in a state dict that holds its teacher too.
STUDENT = "student."
#: What a checkpoint of this library's own training holds beside weights.
_RUN = {"recipe", "counters"}
#: What torch's AveragedModel counts; no weight.
_AVERAGE_COUNT = "n_averaged"


@dataclass(frozen=True)
class Weights:
    """One network's state dict out of a file.

    Attributes:
        tensors: by name, without the prefixes of DistributedDataParallel and torch.compile.
        metadata: of a safetensors header; else empty.
        copy: under which name the file held them: ``"model"``, ``"model_ema"``, ``"student"``, ...;
            empty where it held nothing else.
        ema: the moving average that the file holds too and that was left; empty where none is.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    copy: str = ""
    ema: str = ""


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of :func:`open_weights`."""
    weights = open_weights(path)
    return weights.tensors, weights.metadata


def open_weights(path: str | Path, ema: bool = False) -> Weights:
    """Read a state dict; nothing but tensors is loaded, no code in the file is run.

    Args:
        path: a ``.safetensors`` file, or anything that ``torch.save`` wrote: a state dict, or one
            wrapped in ``state_dict`` or ``model``.
        ema: see :func:`weights_in`.

    Raises:
        InputError: if the file is missing, truncated, holds code, no tensors, or NaN.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; give a .safetensors or .pth file of weights")
    if path.suffix == ".safetensors":
        checkpoint, metadata = _read_safetensors(path)
    else:
        checkpoint, metadata = _torch_load(path), {}
    return weights_in(checkpoint, str(path), ema=ema, metadata=metadata)


def weights_in(
    checkpoint: Any, source: str, *, ema: bool = False, metadata: Mapping[str, str] | None = None
) -> Weights:
    """The state dict inside a loaded checkpoint.

    Of a student and its teacher the student is taken. Of weights and their moving average the
    weights are, as in the released evaluation; the average only on demand, where it is all there
    is, or in a checkpoint of this library's own training, which saves and evaluates it.

    Args:
        checkpoint: a state dict; or a mapping that holds one under ``state_dict`` or ``model``, or
            its moving average under one of :data:`EMA_WRAPPERS`; or a state dict in which those
            words stand before every name of a network.
        source: what error messages call it.
        ema: take the moving average.
        metadata: to go with the tensors.

    Raises:
        InputError: if there is none, or it holds NaN or infinity.
    """
    held = _wrapped(checkpoint) or _prefixed(checkpoint)
    averages = [name for name in held if name in EMA_WRAPPERS]
    if isinstance(checkpoint, Mapping) and checkpoint.keys() >= _RUN:
        ema = bool(averages)
    if ema and not averages:
        raise InputError(
            f"{source}: holds no moving average (EMA) of the weights, under none of "
            f"{', '.join(EMA_WRAPPERS)}; take the weights themselves"
        )
    copy = (averages if ema else [*(name for name in held if name not in averages), *averages])[0]
    state, ema_left = held[copy], averages[0] if averages and copy not in averages else ""
    if not isinstance(state, Mapping) or not state:
        raise InputError(
            f"{source}: holds {type(state).__name__}, not a state dict (names and tensors)"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{source}: {name!r} is {type(value).__name__}, not a tensor; a state dict is "
                f"needed, on its own or under 'state_dict' or 'model'"
            )
    tensors = {_bare(name): value for name, value in state.items() if name != _AVERAGE_COUNT}
    student = {_bare(name): value for name, value in _under(tensors, STUDENT).items()}
    if student:
        copy = f"{copy}.{STUDENT}".strip(".")
    _check_finite(student or tensors, source)
    return Weights(student or tensors, dict(metadata or {}), copy, ema_left)


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    # A network with NaN in it answers, too: the same for every image.
    held = {name: value for name, value in tensors.items() if not value.is_meta}
    broken = [name for name, value in held.items() if not value.float().isfinite().all()]
    if broken:
        raise InputError(
            f"{source}: its weights are not finite: {first_few('NaN or infinity in', broken)}; "
            f"take a checkpoint from before the training broke down"
        )


def _wrapped(checkpoint: Any) -> dict[str, Any]:
    """The state dicts that a training checkpoint holds, by the name of each."""
    if not isinstance(checkpoint, Mapping):
        return {}
    names = (*WRAPPERS, *EMA_WRAPPERS)
    return {name: checkpoint[name] for name in names if isinstance(checkpoint.get(name), Mapping)}


def _prefixed(state: Any) -> dict[str, Any]:
    """The same for a flat state dict, in which a word before the names tells the copies apart."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        return {"": state}
    averages = {ema: _under(state, f"{ema}.") for ema in EMA_WRAPPERS}
    averages = {ema: tensors for ema, tensors in averages.items() if tensors}
    rest = {n: t for n, t in state.items() if n.partition(".")[0] not in averages}
    return ({"": rest} if rest or not averages else {}) | averages


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What has the prefix before its name, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    spoken: Callable[[str], str] = str,
) -> None:
    """Load a state dict of which every name and shape must fit; else nothing is changed.

    Floating-point numbers of another precision become those of the module.

    Args:
        module: where the tensors go.
        tensors: by name.
        source: what error messages call them, with what they should have fitted.
        spoken: what error messages call a name: for a file that has other ones.

    Raises:
        InputError: naming the first few names that are missing, unexpected, of another shape, or
            integers in place of weights.
    """
    expected = module.state_dict()
    both = {name: (tensors[name], value) for name, value in expected.items() if name in tensors}
    problems = [
        first_few("missing", [spoken(name) for name in expected if name not in tensors]),
        first_few("unexpected", [spoken(name) for name in tensors if name not in expected]),
        first_few(
            "of another shape",
            [
                f"{spoken(name)} {tuple(tensor.shape)} instead of {tuple(value.shape)}"
                for name, (tensor, value) in both.items()
                if tensor.shape != value.shape
            ],
        ),
        first_few(
            "of another type",
            [
                f"{spoken(name)} {_type(tensor)} instead of {_type(value)}"
                for name, (tensor, value) in both.items()
                # Another precision is converted; what stands for a quantized weight can't be.
                if value.is_floating_point() and not tensor.is_floating_point()
            ],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise InputError(f"{source}: {len(both)} of its {len(tensors)} names are known; {found}")
    module.load_state_dict(dict(tensors))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not safetensors ({first_line(error)})") from error


def _torch_load(path: Path) -> Any:
    # The released files and timm's hold their command line as a Namespace: plain attributes.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.\w+)", str(error))
        if code:
            raise InputError(
                f"{path}: holds pickled code ({code[1]}), which is not run; save its state dict "
                f"alone, best as .safetensors"
            ) from error
        raise InputError(f"{path}: truncated or not a checkpoint") from error
    except Exception as error:  # on broken bytes the unpickler may raise anything
        raise InputError(f"{path}: truncated or not a checkpoint ({first_line(error)})") from error


def _bare(name: str) -> str:
    for _ in NAME_PREFIXES:  # in either order
        for prefix in NAME_PREFIXES:
            name = name.removeprefix(prefix)
    return name


def first_few(what: str, names: Sequence[str], limit: int = 3) -> str:
    """``what`` and the names, the rest of them counted; empty without names."""
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what} {', '.join(names[:limit])}{more}"


def first_line(error: BaseException, limit: int = 200) -> str:
    """What another library's error says, in whole sentences short enough to be part of ours."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if len(line) <= limit:
        return line
    sentences, stop, _ = line[:limit].rpartition(". ")
    return f"{sentences}." if stop else f"{line[:limit].rpartition(' ')[0] or line[:limit]}…"
