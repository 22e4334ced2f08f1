"""How a figure is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from dynamicvit import InputError
from dynamicvit.plots import style
from dynamicvit.plots.style import save


def test_the_ending_tells_the_format_and_none_stands_for_png_and_pdf(tmp_path: Path) -> None:
    page = style.figure(2, 1)
    assert save(page, tmp_path / "new" / "plot.png") == (tmp_path / "new" / "plot.png",)
    assert os.listdir(tmp_path / "new") == ["plot.png"]
    with Image.open(tmp_path / "new" / "plot.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (2 * style.DPI, style.DPI))
    both = save(page, tmp_path / "both")
    assert [path.name for path in both] == ["both.png", "both.pdf"]
    assert both[1].read_bytes().startswith(b"%PDF")


def test_a_picture_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plot.png"
    path.write_text("before")
    page = style.figure(2, 1)

    def full(draft: Path, **_: object) -> None:
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(page, "savefig", full)
        with pytest.raises(InputError, match=r"plot\.png.*No space left"):
            save(page, path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["plot.png"]
    save(page, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_paths_that_can_not_be_written(tmp_path: Path) -> None:
    page = style.figure(2, 1)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("plot.xyz", "file/plot.png", "folder.png"):
        with pytest.raises(InputError, match=str(tmp_path / name)):
            save(page, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_each_method_has_a_color_and_a_marker_of_its_own() -> None:
    styles = style.method_styles(["dense", "dynamicvit", "tome", "dynamicvit"])
    assert list(styles) == ["dense", "dynamicvit", "tome"]
    assert styles["dense"]["color"] == style.INK
    assert len({str(each) for each in styles.values()}) == 3
