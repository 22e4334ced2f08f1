"""Finished numbers in a folder, each in a file named after the hash of what made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamicvit.utils.files import write_text

#: Of what is computed here; a change of meaning makes old rows be computed anew.
FORMAT = 3


class Cache:
    """What has been computed, to be had again.

    Args:
        folder: of the files; made with the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The value of a key, or ``None``; a file that can't be read counts for nothing."""
        entry = _read(self.path(key))
        return None if entry is None else entry["value"]

    def put(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keep a value, whole or not at all."""
        path, entry = self.path(key), {"key": dict(key), "value": dict(value)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(entry, indent=2, default=str) + "\n", ours=True)

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where the value of a key is."""
        return self.folder / f"{identity(key)}.json"

    def values(self, **parts: Any) -> Iterator[dict[str, Any]]:
        """All values whose keys have these parts, by file name."""
        for path in sorted(self.folder.glob("*.json")):
            entry = _read(path)
            if entry is not None and all(entry["key"].get(k) == v for k, v in parts.items()):
                yield entry["value"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(entry, dict) and {"key", "value"} <= entry.keys()
    return entry if whole else None


# ---------------------------------------------------------------- short hashes


def identity(parts: Mapping[str, Any]) -> str:
    """A hash of JSON values; the order of keys does not matter."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
