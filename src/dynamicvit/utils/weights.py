"""Tensors from files: read without running code, loaded only where every name and shape fits."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.utils.fields import FILE_NAME, read_json
from dynamicvit.utils.tensors import check_tensors
from dynamicvit.utils.words import first_few, first_line

#: Where training scripts put the state dict: timm's and DeiT's names.
WRAPPERS = ("state_dict", "model")
#: Where they put its moving average (EMA): timm's, DeiT's and two more.
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "module_ema", "ema")
#: What DistributedDataParallel and torch.compile put before every name, in either order.
_PREFIXES = re.compile(r"^((_orig_mod|module)\.)+")
#: Before the names of the trained network in a state dict that holds more than it, as a training
#: script's module does: its teacher, metrics.
_TRAINED = ("student", "model", "net", "network")
#: The end of the name of a file that says which tensor is in which of several files.
INDEX_SUFFIX = ".index.json"
#: The name of one of those.
_SHARD = re.compile(r"(.+)-\d+-of-\d+(\.\w+)")
#: Keys of a checkpoint of this library's own training, beside its weights.
_RUN = {"recipe", "counters"}
#: A counter of torch's AveragedModel, not a weight.
_AVERAGE_COUNT = "n_averaged"


@dataclass(frozen=True)
class Weights:
    """One network's state dict from a file.

    Attributes:
        source: what error messages call the file.
        tensors: by name, without a prefix that all names share, or the trained network's have.
        metadata: of a safetensors header; else empty.
        copy: key of the state dict in the file: ``"model"``, ``"model_ema"``, ``"student"``, ...;
            empty if the file holds nothing else.
        ema: key of a moving average in the same file that was not taken; empty without one.
    """

    source: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    copy: str = ""
    ema: str = ""


def open_weights(path: str | Path, ema: bool = False) -> Weights:
    """Read a state dict; only tensors are loaded, code in the file is not run.

    Args:
        path: a ``.safetensors`` file, or anything that ``torch.save`` wrote: a state dict, or one
            wrapped in ``state_dict`` or ``model``; or the index (``.index.json``) of several.
        ema: see :func:`weights_in`.

    Raises:
        InputError: if the file is missing, truncated, holds code, no tensors, or NaN.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputError(
            f"{path}: {problem}; give a .safetensors or .pth file of weights, or the "
            f"{INDEX_SUFFIX} of several"
        )
    shard = _SHARD.fullmatch(path.name)
    index = path.with_name(f"{shard[1]}{shard[2]}{INDEX_SUFFIX}") if shard else None
    if index and index.is_file():
        raise InputError(f"{path}: is one of several files; give {index}")
    checkpoint, metadata = (_read_shards if path.name.endswith(INDEX_SUFFIX) else _read)(path)
    weights = weights_in(checkpoint, str(path), ema=ema, metadata=metadata)
    if empty := first_few("", [name for name, t in weights.tensors.items() if t.is_meta]):
        raise InputError(f"{path}: holds tensors without values (of the meta device):{empty}")
    return weights


def weights_in(
    checkpoint: Any, source: str, *, ema: bool = False, metadata: Mapping[str, str] | None = None
) -> Weights:
    """The state dict inside a loaded checkpoint.

    Of a student and its teacher the student is taken. Of weights and their moving average the
    weights are taken, as in the released evaluation; the average on demand, if the file holds
    nothing else, and from a checkpoint of this library's own training, which evaluates it.

    Args:
        checkpoint: a state dict; or a mapping that holds one under ``state_dict`` or ``model``, or
            its moving average under one of :data:`EMA_WRAPPERS`; or a state dict whose names have
            one of these as prefix.
        source: what error messages call it.
        ema: take the moving average.
        metadata: of the file.

    Raises:
        InputError: if there is no state dict, or it holds NaN or infinity.
    """
    held = _wrapped(checkpoint) or _prefixed(checkpoint)
    averages = [name for name in held if name in EMA_WRAPPERS]
    if isinstance(checkpoint, Mapping) and checkpoint.keys() >= _RUN:
        ema = bool(averages)
        metadata = {"dynamicvit": json.dumps(checkpoint["recipe"])}
    if ema and not averages:
        raise InputError(
            f"{source}: holds no moving average (EMA) of the weights (none of "
            f"{', '.join(EMA_WRAPPERS)}); take the weights themselves"
        )
    copy = (averages if ema else [*(name for name in held if name not in averages), *averages])[0]
    other = averages[0] if averages and copy not in averages else ""
    state = held[copy]
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
    tensors = _bare({name: value for name, value in state.items() if name != _AVERAGE_COUNT})
    while prefix := _prefix_of_network(tensors):
        tensors, copy = _bare(_under(tensors, f"{prefix}.")), f"{copy}.{prefix}".strip(".")
    check_tensors(tensors, source)
    return Weights(source, tensors, dict(metadata or {}), copy, other)


def _wrapped(checkpoint: Any) -> dict[str, Any]:
    """The state dicts in a training checkpoint, by key."""
    if not isinstance(checkpoint, Mapping):
        return {}
    names = (*WRAPPERS, *EMA_WRAPPERS)
    return {name: checkpoint[name] for name in names if isinstance(checkpoint.get(name), Mapping)}


def _prefixed(state: Any) -> dict[str, Any]:
    """The same for a flat state dict, in which a prefix tells the copies apart."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        return {"": state}
    averages = {ema: _under(state, f"{ema}.") for ema in EMA_WRAPPERS}
    averages = {ema: tensors for ema, tensors in averages.items() if tensors}
    rest = {n: t for n, t in state.items() if n.partition(".")[0] not in averages}
    return ({"": rest} if rest or not averages else {}) | averages


def _prefix_of_network(tensors: Mapping[str, Any]) -> str | None:
    """What stands before the names of the network, where something does.

    One of the known words; or any that all names share, if a whole network is below it. That of a
    DynamicViT's backbone is its own.
    """
    first = {name.partition(".")[0] for name in tensors}
    if known := [prefix for prefix in _TRAINED if _under(tensors, f"{prefix}.")]:
        return known[0]
    if len(first) > 1 or not first - {"backbone"}:
        return None
    [prefix] = first
    below = {name.partition(".")[0] for name in _under(tensors, f"{prefix}.")}
    return prefix if below & {"backbone", "blocks"} else None


def _under(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def current_names(
    module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = ""
) -> dict[str, Tensor]:
    """The tensors by the names of today, where a module says what its parts were called before.

    Args:
        module: whose modules may have ``old_names``: new names of children by their old ones.
        tensors: by name.
        prefix: of the module's names, with its dot.
    """
    moved = {}
    for path, part in module.named_modules(prefix=prefix.rstrip(".")):
        for old, new in getattr(part, "old_names", {}).items():
            start = f"{path}." if path else ""
            moved[f"{start}{old}."] = f"{start}{new}."
    renamed = dict(tensors)
    for old, new in moved.items():
        for name in [name for name in renamed if name.startswith(old)]:
            renamed[new + name.removeprefix(old)] = renamed.pop(name)
    return renamed


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    spoken: Callable[[str], str] = str,
) -> None:
    """Load a state dict if every name and shape fits; otherwise change nothing.

    Floating-point tensors are converted to the module's precision.

    Args:
        module: where the tensors go.
        tensors: by name.
        source: how error messages start.
        spoken: a name as error messages give it, for files with other names.

    Raises:
        InputError: with the first few names that are missing, unexpected, of another shape, or
            integers instead of weights.
    """
    tensors, expected = current_names(module, tensors), module.state_dict()
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
                f"{spoken(name)} {tensor.dtype} instead of {value.dtype}"
                for name, (tensor, value) in both.items()
                # Another precision is converted; a quantized weight can't be.
                if value.is_floating_point() and not tensor.is_floating_point()
            ],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise InputError(f"{source}: {len(both)} of its {len(tensors)} names are known; {found}")
    module.load_state_dict(tensors)


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else (_torch_load(path), {})


def _read_shards(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of all files that an index names."""
    index = read_json(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not all(FILE_NAME.holds(n) for n in placed.values()):
        raise InputError(f"{path}: has no weight_map of names to files beside it")
    files = [path.with_name(name) for name in sorted(set(placed.values()))]
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{path}: names {file.name}, which is not beside it")
        part, said = _read(file)
        tensors |= part
        metadata |= said
    if missing := first_few("", [name for name in placed if name not in tensors]):
        raise InputError(f"{path}: its files don't hold{missing}")
    return tensors, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except Exception as error:  # of types that torch does not have, too
        raise InputError(f"{path}: truncated or not safetensors ({first_line(error)})") from error


def _torch_load(path: Path) -> Any:
    # The released files and timm's hold their command line as a Namespace, Lightning's hold paths:
    # plain attributes.
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace, type(path)]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of a pickle's protocol
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


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_PREFIXES.sub("", name): tensor for name, tensor in tensors.items()}
