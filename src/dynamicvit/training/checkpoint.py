"""The state of a run on disk: written whole or not at all."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from dynamicvit.errors import InputError


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state so that a crash leaves the previous file or the new one, never half of one."""
    temporary = path.with_suffix(".partial")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state: tensors and plain values only.

    Raises:
        InputError: if the file is missing, damaged, or holds code.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint {path} is damaged or not one of ours: {reason}") from None
