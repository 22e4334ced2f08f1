"""Where a command may write: not over its own inputs, nor over files of others.

The commands set the rules, :func:`rules`; without them, in Python, every file may be replaced.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dynamicvit._version import __version__
from dynamicvit.errors import InputError

#: What this library's files carry, in the form that their format has room for.
WRITER = f"dynamicvit {__version__}"
MARK = f"written by {WRITER}"
_MARK = re.compile(rb"written[ _]by.{1,20}dynamicvit", re.IGNORECASE | re.DOTALL)
#: Bytes at a file's beginning and end that are searched for the mark.
_SEARCHED = 1 << 20


@dataclass(frozen=True)
class Rules:
    """What may be replaced.

    Attributes:
        inputs: files and folders that the command was given to read.
        overwrite: whether files of others may be replaced.
    """

    inputs: tuple[Path, ...] = ()
    overwrite: bool = True


_rules = [Rules()]


@contextmanager
def rules(inputs: Iterable[str], overwrite: bool) -> Iterator[None]:
    """Within the block outputs replace neither inputs nor, unless told to, files of others.

    Args:
        inputs: the values of a command's options and arguments; those that name nothing that
            exists are passed over.
        overwrite: replace files of others.
    """
    _rules.append(Rules(tuple(dict.fromkeys(_existing(inputs))), overwrite))
    try:
        yield
    finally:
        _rules.pop()


def check_target(
    path: str | Path, option: str = "", *, start: bytes = b"", ours: bool = False
) -> None:
    """Check that a file may be written, by the rules.

    Args:
        path: of the file, which need not be there; links are followed.
        option: that named it, for the message.
        start: how files of this kind begin if they have no room for the mark, as a pattern.
        ours: it is known to be this library's.

    Raises:
        InputError: for a folder or device, a file in a missing folder or without permission to
            write; for an input of the command, and a file that this library did not write.
    """
    path, named = Path(path), f"{option} {path}".strip()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise InputError(f"{named}: can't be written ({error.strerror})") from error
    if mode is None:
        folder = Path(os.path.realpath(path)).parent
        if not folder.is_dir():
            raise InputError(f"{named}: the folder {folder} does not exist")
    else:
        folder = path.resolve().parent
        if stat.S_ISDIR(mode):
            raise InputError(f"{named} is a folder: give a file")
        if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            raise InputError(f"{named} is a device: give a file")
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise InputError(f"{named}: no permission to write there")
        return
    if not os.access(folder, os.W_OK) or (mode and not os.access(path, os.W_OK)):
        raise InputError(f"{named}: no permission to write there")
    if mode is not None:
        _check_replaced(path, named, start, ours)


#: What a model's folder is read from.
_OF_MODELS = ("config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml")


def _check_replaced(path: Path, named: str, start: bytes, ours: bool) -> None:
    given, overwrite = _rules[-1].inputs, _rules[-1].overwrite
    if any(os.path.samefile(path, each) for each in given if each.exists()):
        raise InputError(f"{named} is an input of this command: give another file")
    place = path.resolve()
    of_input = any(each.is_dir() and place.parent == each.resolve() for each in given)
    if of_input and place.name in _OF_MODELS and not ours:
        raise InputError(f"{named} is part of an input of this command: give another file")
    if ours or (overwrite and not given) or is_ours(path, start):
        return
    for each in given:
        if each.is_dir() and place.is_relative_to(each.resolve()):
            raise InputError(f"{named} is part of the input {each}: give another file")
    if not overwrite:
        raise InputError(
            f"{named} exists, and dynamicvit did not write it: give another name, or --overwrite"
        )


def check_set(main: Path, beside: Iterable[str], option: str = "") -> None:
    """:func:`check_target` for a file and those that are written beside it.

    Args:
        main: if it is there and is this library's, so are the others.
        beside: their names.
        option: that named the file.
    """
    whole = os.path.lexists(main)
    if whole:
        check_target(main, option)
    for name in beside:
        if os.path.lexists(main.with_name(name)):
            check_target(main.with_name(name), option, ours=whole)


def is_ours(path: Path, start: bytes = b"") -> bool:
    """Whether this library wrote a file: it carries the mark, begins like one, or is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(_SEARCHED)
            file.seek(max(0, path.stat().st_size - _SEARCHED))
            tail = file.read(_SEARCHED)
    except OSError:
        return False
    begins = bool(start) and re.match(start, head) is not None
    return not head or begins or any(map(_MARK.search, (head, tail)))


def is_stream(path: str | Path) -> bool:
    """Whether a path is written through: a pipe, a terminal, or a descriptor of this process."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or descriptor(path) is not None


_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/(?:self|thread-self|\d+)/fd)/(\d+)")


def descriptor(path: str | Path) -> int | None:
    """The descriptor that a path such as ``/dev/stdout`` leads to; None for other paths."""
    place = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        if found := _DESCRIPTOR.fullmatch(place):
            return int(found[1])
        if not os.path.islink(place):
            return None
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return None


_PREFIXES = re.compile(r"(?:wds|hfds|torch/[^/]*)/", re.IGNORECASE)
#: Files that belong to an exported one.
_BESIDE = {".xml": ".bin", ".onnx": ".onnx.data"}


def _existing(values: Iterable[str]) -> Iterator[Path]:
    """The files and folders that values name, in any of the ways to name them."""
    for value in values:
        without = _PREFIXES.sub("", value, count=1)
        _, _, setting = value.partition("=")  # as of --set
        for name in {value, without, without.rpartition("@")[0], setting}:
            if "{" in name and name.endswith(".tar"):  # shards by braces
                name = os.path.dirname(name.partition("{")[0]) or "."
            try:
                if name and os.path.exists(name):
                    yield Path(name)
                    beside = Path(name).with_suffix(_BESIDE.get(Path(name).suffix, ""))
                    if beside.is_file():
                        yield beside
            except ValueError:  # no name of a file
                continue
