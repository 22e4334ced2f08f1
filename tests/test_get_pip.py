"""The way to pip for a Python that comes without ensurepip."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "get_pip.py"


@pytest.fixture
def get_pip() -> ModuleType:
    spec = importlib.util.spec_from_file_location("get_pip", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(version: str, **more: Any) -> dict[str, Any]:
    return {"filename": f"pip-{version}-py3-none-any.whl", "requires-python": ">=3.9"} | more


def test_the_newest_wheel_that_runs_here_is_taken(get_pip: ModuleType) -> None:
    files = [
        wheel("9.0.3", **{"requires-python": None}),
        wheel("25.10"),
        wheel("25.9.1"),  # older than 25.10, though not in the alphabet
        wheel("26.0b1"),
        wheel("27.0", yanked="broken"),
        wheel("28.0", **{"requires-python": ">=3.11"}),
        {"filename": "pip-29.0.tar.gz", "requires-python": ">=3.9"},
    ]
    assert get_pip.newest_wheel(files, (3, 10))["filename"] == "pip-25.10-py3-none-any.whl"
    assert get_pip.newest_wheel(files, (3, 12))["filename"] == "pip-28.0-py3-none-any.whl"


def test_a_damaged_wheel_is_not_run(get_pip: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = b'{"files": [{"filename": "pip-26.0-py3-none-any.whl", "url": "../w.whl", '
    listing += b'"hashes": {"sha256": "00"}, "requires-python": ">=3.9"}]}'
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return listing if len(asked) == 1 else b"not a wheel"

    monkeypatch.setattr(get_pip, "fetch", fetch)
    monkeypatch.setattr(get_pip.subprocess, "run", lambda *a, **k: pytest.fail("it was run"))
    with pytest.raises(SystemExit, match="came damaged"):
        get_pip.main()
    assert asked == [get_pip.RELEASES, "https://pypi.org/simple/w.whl"]
