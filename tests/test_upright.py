"""Images as people see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dynamicvit import InputError
from dynamicvit.data import read_image
from pictures import truncated_jpeg


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (20, 10)).save(tmp_path / "side.jpg", exif=exif)
    assert read_image(tmp_path / "side.jpg").size == (10, 20)
    assert read_image(tmp_path / "side.jpg", "L").mode == "L"


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "text.png", tmp_path / "none.png", truncated_jpeg(tmp_path / "a.jpg")):
        with pytest.raises(InputError, match=f"^{path} can't be read as an image \\(.+\\)$"):
            read_image(path)
