"""The pictures that come with scikit-learn: digits, two photographs, and clips made of those."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from dynamicvit.utils.optional import need

#: Width of the window that moves over a photograph, as a share of it.
_PAN = 0.75


def digits(extra: str) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits ``(1797, 8, 8)``, ink from 0 to 16, and their labels ``(1797,)``.

    Args:
        extra: of dynamicvit, which installs scikit-learn.

    Raises:
        InputError: if scikit-learn is missing.
    """
    rows = np.loadtxt(_folder(extra) / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)


def photographs(extra: str) -> dict[str, Image.Image]:
    """Two RGB photographs by name, of 640x427 pixels.

    Args:
        extra: of dynamicvit, which installs scikit-learn.

    Raises:
        InputError: if scikit-learn is missing.
    """
    found = {}
    for path in sorted((_folder(extra) / "images").glob("*.jpg")):
        with Image.open(path) as picture:
            found[path.stem] = picture.convert("RGB")
    return found


def panned(photograph: Image.Image, frames: int) -> np.ndarray:
    """A clip ``(frames, 3, H, W)`` uint8: a window that moves over a photograph to the right."""
    pixels = np.asarray(photograph).transpose(2, 0, 1)
    width = int(_PAN * pixels.shape[2])
    starts = np.linspace(0, pixels.shape[2] - width, frames).round().astype(int)
    return np.stack([pixels[:, :, start : start + width] for start in starts])


def _folder(extra: str) -> Path:
    """scikit-learn's files, without importing it: its SciPy alone takes as long as PyTorch."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        return Path(need("sklearn", extra).__path__[0]) / "datasets"  # says what is missing
    return Path(spec.submodule_search_locations[0]) / "datasets"
