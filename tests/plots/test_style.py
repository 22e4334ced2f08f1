"""How a figure is written."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dynamicvit import InputError
from dynamicvit.comparison.rows import DENSE_NAME, all_names
from dynamicvit.plots import style
from dynamicvit.plots.frontier import plot_frontier
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
    names = [DENSE_NAME, *all_names(), "mine", "yours"]
    looks = style.method_styles(names)
    assert list(looks) == names
    for part in ("color", "marker"):
        assert len({looks[name][part] for name in [DENSE_NAME, *all_names()]}) >= len(names) - 3
    assert len({str(look) for look in looks.values()}) == len(names)
    for name in all_names():
        assert style.method_styles(["yours", name])[name] == looks[name], "the same in every plot"


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(0.1, 10))
def test_labels_are_moved_apart_and_no_further(places: list[float], step: float) -> None:
    places = sorted(places)
    found = style.apart(places, step)
    gaps = [after - before for before, after in pairwise(found)]
    assert all(gap >= step - 1e-6 for gap in gaps)
    assert sum(found) == pytest.approx(sum(places), abs=1e-6)  # as much up as down
    if all(after - before >= step for before, after in pairwise(places)):
        assert found == pytest.approx(places)


def test_a_frontier_where_nothing_was_tried() -> None:
    figure = plot_frontier({"found": [(0.5, 0.1)]}, [], (0.5, 0.1), "MACs")
    [axes] = figure.axes
    assert {text.get_text() for text in axes.get_legend().texts} == {"found", "chosen"}
