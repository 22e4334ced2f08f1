"""What made a number, as a short hash: the same inputs are not computed twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dynamicvit.data import ImageData

#: Of what is computed here; a change of meaning makes old rows be computed anew.
FORMAT = 1


def identity(parts: Mapping[str, Any]) -> str:
    """A hash of JSON values; the order of keys does not matter."""
    return _digest(json.dumps(parts, sort_keys=True, default=str).encode())


def weights_identity(network: nn.Module) -> str:
    """A hash of a network's parameters and buffers, by name, shape and value."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        plain = value.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def data_identity(sources: Sequence[ImageData]) -> str:
    """A hash of the images' names, labels and, where they are files, sizes; not of where they lie.

    Pixels are not read: a file that is replaced by another of the same name and size goes unseen.
    """
    digest = hashlib.sha256()
    for source in sources:
        root = str(source.root)
        for index in range(len(source)):
            path = source.path(index)
            size = os.path.getsize(path) if os.path.isfile(path) else -1
            name = path.removeprefix(root).replace(os.sep, "/")
            digest.update(f"{name} {source.labels[index]} {size}\n".encode())
        digest.update(b"-")
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
