"""Reference data that is too large for the repository: found next to it, or skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """Path of a shared file, such as ``golden/deit_rho07.safetensors``; skips where it is absent.

    ``DYNAMICVIT_SHARED`` names the folder; by default it is ``shared`` next to the repository.
    """
    path = Path(os.environ.get("DYNAMICVIT_SHARED", DEFAULT)) / name
    if not path.exists():
        pytest.skip(f"{path} is absent (DYNAMICVIT_SHARED names its folder)")
    return path
