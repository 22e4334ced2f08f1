"""The oldest timm that pyproject.toml allows; the other tests run with the newest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.extended
def test_the_oldest_timm(tmp_path: Path) -> None:
    project = (TESTS.parent / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r'"timm>=([\d.]+)"', project)
    assert oldest is not None
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path)
    got = subprocess.run([*pip, f"timm=={oldest[1]}"], capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"timm {oldest[1]} can't be installed: {got.stderr.strip().splitlines()[-1]}")
    path = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    words = [sys.executable, "-W", "ignore", TESTS / "oldest_timm.py"]
    ran = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ran.stdout.split() == ["timm", oldest[1]], ran.stderr[-2000:]
