"""Tensors from files: read without running code, loaded only where every name and shape fits."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dynamicvit.errors import InputError

#: Where training scripts put the state dict: timm's and DeiT's names.
WRAPPERS = ("state_dict", "model")
#: What DistributedDataParallel and torch.compile put before every name.
NAME_PREFIXES = ("_orig_mod.", "module.")


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict; nothing but tensors is loaded, no code in the file is run.

    Args:
        path: a ``.safetensors`` file, or anything that ``torch.save`` wrote: a state dict, or one
            wrapped in ``state_dict`` or ``model``.

    Returns:
        The tensors by name, without the prefixes of DistributedDataParallel and torch.compile,
        and the header's metadata (empty unless safetensors).

    Raises:
        InputError: if the file is missing, truncated, holds code, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .safetensors or .pth file of weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return state_dict_of(_torch_load(path), str(path)), {}


def state_dict_of(checkpoint: Any, source: str) -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint.

    Args:
        checkpoint: a state dict, or a mapping that holds one under ``state_dict`` or ``model``.
        source: what error messages call it.

    Raises:
        InputError: if there is none.
    """
    for wrapper in WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise InputError(
            f"{source}: holds {type(checkpoint).__name__}, not a state dict (names and tensors)"
        )
    for name, value in checkpoint.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{source}: {name!r} is {type(value).__name__}, not a tensor; a state dict is "
                f"needed, on its own or under 'state_dict' or 'model'"
            )
    return {_bare(name): value for name, value in checkpoint.items()}


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict of which every name and shape must fit; else nothing is changed.

    Args:
        module: where the tensors go.
        tensors: by name.
        source: what error messages call them, with what they should have fitted.

    Raises:
        InputError: naming the first few names that are missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    problems = [
        _first_few("missing", [name for name in expected if name not in tensors]),
        _first_few("unexpected", [name for name in tensors if name not in expected]),
        _first_few(
            "of another shape",
            [
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
                for name, value in expected.items()
                if name in tensors and tensors[name].shape != value.shape
            ],
        ),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise InputError(f"{source}: {found}")
    module.load_state_dict(dict(tensors))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {_bare(name): file.get_tensor(name) for name in file.keys()}, (  # noqa: SIM118
                file.metadata() or {}
            )
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


def _first_few(what: str, names: Sequence[str], limit: int = 3) -> str:
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
