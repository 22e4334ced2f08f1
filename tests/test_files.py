"""Files are there whole or not at all, where they were asked for, and nothing else is."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamicvit.errors import InputError
from dynamicvit.plots import style
from dynamicvit.utils import files
from dynamicvit.utils.files import (
    UNFINISHED,
    atomic_folder,
    atomic_write,
    open_output,
    remove_unfinished,
    temporary_folder,
    write_text,
)
from dynamicvit.utils.outputs import MARK, check_target, is_ours, rules
from families import DEIT


def test_a_file_is_replaced_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second ρ"):
        write_text(path, content)
        assert path.read_text(encoding="utf-8") == content
    with atomic_write(path) as draft:
        draft.write_text("third")
        assert draft.stat().st_dev == path.stat().st_dev, "renaming is atomic on one disk only"
        assert draft.name == path.name
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
    with pytest.raises(error), atomic_folder(folder / "below", "file") as drafts:
        break_off(drafts / "file")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_files_move_into_a_folder_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "new" / "folder", Path("relative") / "folder"):
        for content in ("1", "2"):
            with atomic_folder(folder, "a", keep="notes") as draft:
                (draft / "a").write_text(content)
                (draft / content).write_text(content)
                (draft / "notes").write_text(content)
        assert sorted(os.listdir(folder)) == ["1", "2", "a", "notes"]
        assert (folder / "a").read_text() == "2"
        assert (folder / "notes").read_text() == "1"
    assert sorted(os.listdir(tmp_path)) == ["new", "relative"]


def test_links_stay_and_lead_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    far, link, dangling = tmp_path / "far" / "file", tmp_path / "link", tmp_path / "dangling"
    far.write_text("old")
    link.symlink_to(far)
    dangling.symlink_to(tmp_path / "far" / "new")
    for place, content in ((link, "1"), (dangling, "2")):
        write_text(place, content)
        with atomic_folder(tmp_path, place.name) as folder:
            (folder / place.name).write_text(content * 2)
            (folder / "beside").write_text(content)
        with open_output(place) as lines:
            lines.write(content * 3)
        assert place.is_symlink()
        assert place.read_text() == content * 3
    assert far.read_text() == "111"
    assert sorted(os.listdir(tmp_path / "far")) == ["file", "new"]


def writers(path: Path, content: str) -> list[Callable[[], None]]:
    """Each way to write a single file."""

    def bit_by_bit() -> None:
        with open_output(path) as lines:
            lines.write(content)

    return [lambda: write_text(path, content), bit_by_bit]


@pytest.mark.parametrize("way", [0, 1])
def test_pipes_and_descriptors_are_written_to(
    tmp_path: Path, way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    writers(pipe, "through")[way]()
    reader.join()
    assert got == ["through"]
    assert pipe.is_fifo()
    monkeypatch.setattr(files, "PIPE_SECONDS", 0.1)
    with pytest.raises(InputError, match=r"pipe.*nobody reads"):
        writers(pipe, "lost")[way]()

    # As /dev/stdout is of `> file`: what is there already stays.
    with open(tmp_path / "file", "w") as file:
        file.write("before ")
        file.flush()
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{file.fileno()}")
        writers(tmp_path / "stdout", "and after")[way]()
    assert (tmp_path / "file").read_text() == "before and after"
    writers(Path("/dev/null"), "nothing")[way]()
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe", "stdout"]


def test_a_reader_that_goes_is_named() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with pytest.raises(InputError, match=rf"/dev/fd/{theirs}: its reader has gone"):
        write_text(f"/dev/fd/{theirs}", "text")
    os.close(theirs)


def test_what_killed_processes_left_is_taken_away(tmp_path: Path) -> None:
    """Only that: not what one that lives is writing, nor a user's file of such a name."""
    leftover = tmp_path / f"{UNFINISHED}dead"
    (leftover / "deeper").mkdir(parents=True)
    (tmp_path / f"{UNFINISHED}notes").write_text("mine")
    (tmp_path / f"{UNFINISHED}link").symlink_to(tmp_path)
    child = os.fork()
    if not child:  # a process that lives while the sweep looks
        with atomic_write(tmp_path / "late") as draft:
            draft.write_text("whole")
            (tmp_path / "started").touch()
            while not (tmp_path / "swept").exists():
                time.sleep(0.01)
        os._exit(0)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    for sweep in (remove_unfinished, lambda folder: remove_unfinished(folder / "not" / "there")):
        leftover.mkdir(exist_ok=True)
        sweep(tmp_path)
        assert not leftover.exists()
    (tmp_path / "swept").touch()
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "late").read_text() == "whole"
    (tmp_path / "started").unlink()
    (tmp_path / "swept").unlink()
    names = sorted(os.listdir(tmp_path))
    assert names == [f"{UNFINISHED}link", f"{UNFINISHED}notes", "late"]


def test_temporary_folders_of_killed_processes_are_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    child = os.fork()
    if not child:
        with temporary_folder() as folder:
            (folder / "weights").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [*tmp_path.glob("*/weights")]
    with temporary_folder() as folder:
        assert [*tmp_path.iterdir()] == [folder]
    assert not [*tmp_path.iterdir()]


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    child = os.fork()
    if not child:
        with atomic_write(path) as draft:
            draft.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    write_text(path, "new")
    assert os.listdir(tmp_path) == ["file"]


NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
    st.lists(st.sampled_from([*range(1, 47), *range(48, 256)]), min_size=1, max_size=260).map(
        lambda codes: os.fsdecode(bytes(codes))
    ),
    st.sampled_from(["a" * 255, "-", "--json", " ", "a\nb", "{0..9}.tar", "wds", "@", "ρ" * 127]),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=NAMES, text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_name_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    """It is written under just this name, or refused by its name in one line."""
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    path = folder / name
    for way in (0, 1):
        if name in (".", "..") or len(os.fsencode(name)) > 255:
            with pytest.raises(InputError, match=re.escape(str(path))):
                writers(path, text)[way]()
            assert not os.listdir(folder)
        else:
            writers(path, text)[way]()
            assert os.listdir(os.fsencode(folder)) == [os.fsencode(name)]
            assert path.read_bytes().decode() == text
    path.unlink() if path.is_file() else None


# ---------------------------------------------------------------- what may be replaced


def test_only_our_own_files_are_replaced(tmp_path: Path) -> None:
    mine, ours, empty = (tmp_path / name for name in ("mine", "ours", "empty"))
    mine.write_text("a letter about dynamicvit")
    ours.write_text(f'{{"numbers": 1, "by": "{MARK}"}}')
    empty.touch()
    (tmp_path / "link").symlink_to(mine)
    with rules([], overwrite=False):
        for path in (ours, empty, tmp_path / "new"):
            write_text(path, MARK)
        for name in ("mine", "link"):
            with pytest.raises(InputError, match=rf"{name} exists.*--overwrite"):
                write_text(tmp_path / name, "gone")
        with pytest.raises(InputError, match="mine exists"), open_output(mine):
            pass

        def together() -> None:
            with atomic_folder(tmp_path, "x") as draft:
                (draft / "x").touch()
                (draft / "mine").touch()

        with pytest.raises(InputError, match="mine exists"):
            together()
        assert not (tmp_path / "x").exists(), "nothing moves if one file can't"
        write_text(mine, "a letter about all", start=b"a letter")
    with rules([], overwrite=True):
        write_text(tmp_path / "link", "gone")
    assert mine.read_text() == "gone"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def slowly() -> None:
        with atomic_write(path) as draft:
            draft.write_text("late")
            path.write_text("first")

    with rules([], overwrite=False), pytest.raises(InputError, match="file exists"):
        slowly()
    assert path.read_text() == "first"


@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_never_replaced(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they are named: the same file by a link, with a prefix, in a folder, by braces."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    files = {name: tmp_path / name for name in ("a.tar", "photos/cat.png", "b.xml", "b.bin")}
    files["0.tar"] = tmp_path / "photos" / "0.tar"
    for name, path in files.items():
        path.write_text(name)
    (tmp_path / "soft").symlink_to("a.tar")
    os.link("a.tar", "hard")
    given = {
        "a.tar": ["a.tar", "soft", "hard", "photos/../a.tar"],
        "soft": ["a.tar", "hard"],
        "photos": ["photos/cat.png"],
        "wds/photos@validation": ["photos/0.tar"],
        "wds/photos/{0..3}.tar": ["photos/0.tar"],
        "teacher.model=a.tar": ["a.tar"],
        "torch/CIFAR10/photos": ["photos/cat.png"],
        "b.xml": ["b.xml", "b.bin"],
    }
    for value, outputs in given.items():
        with rules([value], overwrite):
            for output in outputs:
                with pytest.raises(InputError, match=f"{output} is (an input|part of the input)"):
                    write_text(output, "gone")
            write_text("photos/own.json", MARK)
            write_text("photos/own.json", MARK)
            (tmp_path / "photos" / "own.json").unlink()
    assert all(path.read_text() == name for name, path in files.items())


def test_what_can_not_be_an_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("", "file/below", "none/below", "loop", "a" * 256):
        with pytest.raises(InputError, match=str(tmp_path)):
            check_target(tmp_path / name, "--json")


def test_every_format_carries_the_mark(tmp_path: Path) -> None:
    DEIT.sparse().save_pretrained(tmp_path)
    page: Any = style.figure(2, 1)
    for ending in ("png", "pdf", "svg"):
        style.save(page, tmp_path / f"plot.{ending}")
    made = [path for path in tmp_path.iterdir() if path.name != "README.md"]
    assert len(made) == 5
    made += [Path(__file__).parents[1] / "docs" / "backbones.md"]
    for path in made:
        assert is_ours(path), path
    for path in (tmp_path / "README.md", Path(__file__)):
        assert not is_ours(path), path


def test_a_signal_while_a_draft_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held back until it is made, it comes before anything is written; other threads or not."""
    done = threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)  # may be handed the signal
    other.start()

    def make(**settings: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return tempfile.mkdtemp(**settings)

    monkeypatch.setattr(files, "mkdtemp", make)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "text")
    assert not os.listdir(tmp_path)
    done.set()
