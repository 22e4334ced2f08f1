"""One checkpoint as a file: written with a digest of itself, read only if every bit is as written.

A checkpoint is torch's zip of records. The zip's directory, at its end, has each record's name,
place, size and checksum; the digest of the directory is the zip's comment. So all bits that are
read are covered, and writing hashes kilobytes only.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import (
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    with_config,
)
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from dynamicvit.errors import InputError
from dynamicvit.utils.words import first_line

#: Version of the state that this code writes, and the only one that it reads.
VERSION = 1

#: In a state: that its file has a digest. One that lost it is damaged, and not an older file.
_SEALED = "sealed"
#: Bytes of a digest.
_DIGEST = hashlib.sha256().digest_size


class DamagedError(InputError):
    """A checkpoint that was whole once."""


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values, and make sure that they are on the disk.

    Raises:
        OSError: if the disk is full or gone.
        RuntimeError: likewise, from torch's writer.
    """
    with open(path, "w+b") as file:
        torch.save({"version": VERSION, _SEALED: True, **state}, file)
        with zipfile.ZipFile(file, "a") as records:
            records.comment = bytes(_DIGEST)  # makes room: it is part of the directory's own end
        digest = _digest(file, records.start_dir)
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state: tensors and plain values only.

    Raises:
        InputError: if the file is missing, can't be read, or is of another version.
        DamagedError: if it is not as it was written, or holds code.
    """
    if not path.exists():
        raise InputError(f"no checkpoint {path}")
    if not path.is_file():
        raise _damaged(path, "it is no file")
    try:
        state, is_sealed = _read(path)
    except PermissionError as error:
        raise InputError(f"checkpoint {path} can't be read ({error.strerror})") from None
    except Exception as error:  # on broken bytes zipfile and the unpickler may raise anything
        raise _damaged(path, first_line(error)) from None
    version = state.get("version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise _damaged(path, "it holds no version")
    if version != VERSION:
        raise InputError(
            f"checkpoint {path} is of version {version}, this dynamicvit goes on with version "
            f"{VERSION}: go on with the dynamicvit that wrote it, or start anew in another folder"
        )
    if state.pop(_SEALED, False) and not is_sealed:
        raise _damaged(path, "its digest is gone")
    try:
        _STATE.validate_python(state)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise _damaged(path, f"{place}: {problem['msg']}") from None
    return state


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(f"checkpoint {path} is damaged or not one of ours: {reason}")


def _read(path: Path) -> tuple[Any, bool]:
    """What a file holds, and whether it has a digest; those of 0.1.0 have checksums only."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as records:
        seal = records.comment
        if seal and seal != _digest(file, records.start_dir):
            raise zipfile.BadZipFile("it is not what its digest says")
        # torch does not look at the checksums that it writes, and reads nothing from a folder.
        broken = records.testzip() or next(filter(_is_folder, records.infolist()), None)
    if broken is not None:
        raise zipfile.BadZipFile(f"a record is broken: {broken}")
    return torch.load(path, map_location="cpu", weights_only=True), bool(seal)


def _digest(file: BinaryIO, start: int) -> bytes:
    """The hash of a zip's directory, without that hash; the file is then at its end."""
    file.seek(start)
    return hashlib.sha256(file.read()[:-_DIGEST]).digest()


def _is_folder(record: zipfile.ZipInfo) -> bool:
    return bool(record.external_attr & 0x10)


# ---------------------------------------------------------------- what a state holds


_CONFIG = with_config(ConfigDict(strict=True, arbitrary_types_allowed=True))


@_CONFIG
class _Group(TypedDict):
    params: list[int]


@_CONFIG
class _Optimizer(TypedDict):
    state: dict[int, dict[str, Tensor]]
    param_groups: list[_Group]


@_CONFIG
class _Counters(TypedDict):
    step: NonNegativeInt
    images: NonNegativeInt
    bad_steps: NonNegativeInt
    bad_in_a_row: NonNegativeInt
    seconds: float
    skipped: list[str]
    log_bytes: NonNegativeInt
    kept_sum: list[float]
    kept_steps: NonNegativeInt


@_CONFIG
class _Best(TypedDict):
    measure: NotRequired[str]
    value: float | None
    step: int | None


@_CONFIG
class _State(TypedDict):
    recipe: dict[str, Any]
    epoch_steps: PositiveInt
    processes: PositiveInt
    images: NotRequired[str | None]
    external_teacher: NotRequired[str | None]
    foreign_teacher: NotRequired[str | None]  # as 0.1.0 called it
    model: dict[str, Tensor]
    teacher: NotRequired[dict[str, Tensor]]
    ema: NotRequired[dict[str, Tensor]]
    optimizer: _Optimizer
    scaler: dict[str, float]
    counters: _Counters
    best: NotRequired[_Best]


_STATE = TypeAdapter(_State)
