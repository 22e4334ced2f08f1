"""Get a released checkpoint: once, whole, and of the architecture that it should be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from huggingface_hub.file_download import http_get

from dynamicvit.checkpoints.released.recognize import recognize
from dynamicvit.checkpoints.released.zoo import PROJECT_PAGE, Release, release_of
from dynamicvit.errors import InputError
from dynamicvit.utils.weights import first_line

_RANGE_NOT_SATISFIABLE = 416


def download(name: str, folder: str | Path | None = None) -> Path:
    """The file of a release: from the cache, or downloaded into it.

    A download that broke off goes on where it ended. The file gets its name once it is complete and
    holds the network that it should. One in the cache that doesn't is downloaded again, and
    replaced once the new one is there.

    Args:
        name: of the release, such as ``"deit-s-0.7"``.
        folder: the cache; by default that of torch.hub, which ``TORCH_HOME`` and
            ``XDG_CACHE_HOME`` move.

    Raises:
        InputError: for an unknown name; or saying why the file can't be had, and where else it is.
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
            f"{folder}: can't be written ({first_line(error)}); TORCH_HOME names another place"
        ) from error
    cached = f" (and {path} in the cache is of no use: {broken})" if broken else ""
    try:
        with partial.open("ab") as file:
            http_get(
                release.url, file, resume_size=file.tell(), displayed_filename=release.file_name
            )
    except Exception as error:  # of the HTTP library under huggingface_hub, which changes
        reason = first_line(error)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == _RANGE_NOT_SATISFIABLE or not partial.stat().st_size:
            partial.unlink()
        else:
            reason = f"broke off after {partial.stat().st_size} bytes ({reason}); run it again"
        raise _failed(release, reason + cached) from error
    problem = _torn(partial) or _problem(release, partial)
    if problem:
        partial.unlink()
        raise _failed(release, f"what came is no {release.architecture.name}: {problem}{cached}")
    partial.replace(path)
    return path


def _failed(release: Release, reason: str) -> InputError:
    return InputError(
        f"{release.name}: {release.url}: {reason}; other places are {release.mirror} and "
        f"{PROJECT_PAGE}; with the file: dynamicvit convert FILE --keep-ratio "
        f"{release.keep_ratio} --out DIR"
    )


def _problem(release: Release, file: Path) -> str:
    """Why the file is no checkpoint of the release's architecture; empty if it is one."""
    try:
        found = recognize(file, release.keep_ratio)
    except InputError as error:
        return str(error).removeprefix(f"{file}: ")
    return "" if found.architecture == release.architecture else f"it is a {found.name}"


def _torn(file: Path) -> str:
    """Which part of the file is not as it was packed, say of a file that changed between two tries.

    torch looks at no checksums.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            part = archive.testzip()
    except zipfile.BadZipFile:  # an old format, or no checkpoint, which torch will tell
        return ""
    return f"wrong checksum of {part}" if part else ""
