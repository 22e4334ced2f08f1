"""Download a released checkpoint once, and check that it is complete and what it should be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from huggingface_hub.file_download import http_get

from dynamicvit.checkpoints.released.recognize import recognize
from dynamicvit.checkpoints.released.zoo import PROJECT_PAGE, Release, release_of
from dynamicvit.errors import InputError
from dynamicvit.utils.words import first_line

_RANGE_NOT_SATISFIABLE = 416


def download(name: str, folder: str | Path | None = None) -> Path:
    """The file of a release: from the cache, or downloaded into it.

    An interrupted download is resumed. The file gets its name once it is complete and holds the
    right network. A broken one in the cache is replaced after the new one has arrived.

    Args:
        name: of the release, such as ``"deit-s-0.7"``.
        folder: the cache; by default that of torch.hub, which ``TORCH_HOME`` and
            ``XDG_CACHE_HOME`` move.

    Raises:
        InputError: for an unknown name, or a failed download, with the other sources.
    """
    release = release_of(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)
    path = folder / release.file_name
    broken = _problem(release, path) if path.is_file() else ""
    if path.is_file() and not broken:
        return path
    partial = path.with_name(f"{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({first_line(error)}); set TORCH_HOME to another folder"
        ) from error
    cached = f" (the cached {path} is broken: {broken})" if broken else ""
    try:
        with partial.open("ab") as file:
            http_get(
                release.url, file, resume_size=file.tell(), displayed_filename=release.file_name
            )
    except Exception as error:  # huggingface_hub's HTTP library differs between its versions
        reason = first_line(error)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == _RANGE_NOT_SATISFIABLE or not partial.stat().st_size:
            partial.unlink()
        else:
            reason = f"interrupted after {partial.stat().st_size} bytes ({reason}); run it again"
        raise _failed(release, reason + cached) from error
    problem = _torn(partial) or _problem(release, partial)
    if problem:
        partial.unlink()
        raise _failed(release, f"the file is not a {release.architecture.name}: {problem}{cached}")
    partial.replace(path)
    return path


def _failed(release: Release, reason: str) -> InputError:
    return InputError(
        f"{release.name}: {release.url}: {reason}; other sources are {release.mirror} and "
        f"{PROJECT_PAGE}; then run dynamicvit convert FILE --keep-ratio {release.keep_ratio} "
        f"--out DIR"
    )


def _problem(release: Release, file: Path) -> str:
    """Why the file is not a checkpoint of the release's architecture; empty if it is."""
    try:
        found = recognize(file, release.keep_ratio)
    except InputError as error:
        return str(error).removeprefix(f"{file}: ")
    return "" if found.shapes.architecture == release.architecture else f"it is a {found.name}"


def _torn(file: Path) -> str:
    """The part with a wrong checksum, for torch checks none; empty if all are right.

    A file that changed on the server between two tries ends up like this.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            part = archive.testzip()
    except zipfile.BadZipFile:  # an old format, or no checkpoint: torch finds out
        return ""
    return f"wrong checksum of {part}" if part else ""
