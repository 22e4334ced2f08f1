"""Install pip into this Python's environment where ``ensurepip`` is missing.

Debian and Ubuntu leave ``ensurepip`` out of their bare ``python3``, and adding it takes root. A
pip wheel can install itself: this fetches the newest one from PyPI, checks its hash, and runs it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

#: PyPI's list of pip's files (PEP 691).
RELEASES = "https://pypi.org/simple/pip/"
JSON = "application/vnd.pypi.simple.v1+json"
TIMEOUT_SECONDS = 60


def main() -> None:
    """Fetch, check and install; the exit code is pip's."""
    wheel = newest_wheel(json.loads(fetch(RELEASES))["files"], sys.version_info[:2])
    content = fetch(urljoin(RELEASES, wheel["url"]))
    if hashlib.sha256(content).hexdigest() != wheel["hashes"]["sha256"]:
        sys.exit(f"{wheel['filename']} came damaged; try again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, wheel["filename"])
        path.write_bytes(content)
        command = [sys.executable, f"{path}/pip", "install", "--quiet", "--no-index", str(path)]
        sys.exit(subprocess.run(command, check=False).returncode)


def newest_wheel(files: list[dict[str, Any]], python: tuple[int, int]) -> dict[str, Any]:
    """The newest released wheel that runs on this Python."""

    def version(file: dict[str, Any]) -> list[int]:
        released = re.fullmatch(r"pip-([\d.]+)-py3-none-any\.whl", file["filename"])
        needed = re.search(r">=3\.(\d+)", file.get("requires-python") or "")
        runs = needed is None or (3, int(needed[1])) <= python
        if released is None or not runs or file.get("yanked"):
            return []
        return [int(number) for number in released[1].split(".")]

    return max(files, key=version)


def fetch(url: str) -> bytes:
    """What the address answers."""
    request = urllib.request.Request(url, headers={"Accept": f"{JSON}, */*;q=0.1"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        return answer.read()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(
            f"pip can't be fetched from PyPI ({error}), and this Python brings none: install its "
            f"ensurepip (on Debian and Ubuntu: apt install python3-venv)"
        )
