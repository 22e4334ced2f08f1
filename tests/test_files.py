"""Files are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynamicvit.utils.files import atomic_folder, atomic_write, write_text


def test_a_file_is_replaced_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second ρ"):
        write_text(path, content)
        assert path.read_text(encoding="utf-8") == content
    with atomic_write(path) as draft:
        draft.write_text("third")
        assert draft.parent == path.parent, "renaming is atomic on one disk only"
        assert path.read_text(encoding="utf-8") == "second ρ"
    assert path.read_text() == "third"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_breaks_off_leaves_what_was_there(tmp_path: Path, error: type[Exception]) -> None:
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")

    def break_off(file: Path) -> None:
        file.write_text("half")
        raise error

    with pytest.raises(error), atomic_write(path) as draft:
        break_off(draft)
    with pytest.raises(error), atomic_folder(folder / "below") as drafts:
        break_off(drafts / "file")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_files_move_into_a_folder_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "new" / "folder", Path("relative") / "folder"):
        for content in ("1", "2"):
            with atomic_folder(folder) as draft:
                (draft / "a").write_text(content)
                (draft / content).write_text(content)
        assert sorted(os.listdir(folder)) == ["1", "2", "a"]
        assert (folder / "a").read_text() == "2"
    assert sorted(os.listdir(tmp_path)) == ["new", "relative"]
