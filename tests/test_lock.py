"""A folder has one owner: another process is refused and named, a dead one forgotten."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dynamicvit import InputError
from dynamicvit.utils.lock import LOCK_NAME, owned, refuse_owned
from processes import FORKS


def own(folder: Path, said: Connection) -> None:
    """Own a folder until asked to stop; a forked child outlives whoever is killed."""
    with owned(folder):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        said.send(child)
        said.recv()
        os.kill(child, signal.SIGKILL)


@pytest.fixture
def other(tmp_path: Path):
    """Another process that owns a folder: the folder, the process, what lets it end."""
    ours, theirs = multiprocessing.Pipe()
    process = FORKS.Process(target=own, args=(tmp_path / "run", theirs), daemon=True)
    process.start()
    child = ours.recv()
    yield tmp_path / "run", process, lambda: ours.send(None)
    process.kill()
    process.join()
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def test_another_process_is_refused_and_named(other: tuple) -> None:
    folder, process, finish = other
    for attempt in (lambda: owned(folder).__enter__(), lambda: refuse_owned(folder)):
        with pytest.raises(
            InputError, match=rf"{re.escape(str(folder))} is in use by process \d+ \("
        ):
            attempt()
    finish()
    process.join(60)
    assert not folder.exists(), "it was new, and nothing was written"
    with owned(folder):
        (folder / "file").write_text("")
    assert os.listdir(folder) == ["file"]


def test_a_dead_one_is_forgotten_though_its_children_live(other: tuple) -> None:
    folder, process, _ = other
    process.kill()
    process.join(60)
    assert (folder / LOCK_NAME).exists()
    refuse_owned(folder)
    with owned(folder):
        assert f'"pid": {os.getpid()}' in (folder / LOCK_NAME).read_text()
    assert not folder.exists() or not os.listdir(folder)


def test_who_owns_a_folder_may_own_it_again_but_no_other_thread(tmp_path: Path) -> None:
    refused: list[str] = []

    def attempt() -> None:
        try:
            with owned(tmp_path):
                pass
        except InputError as error:
            refused.append(str(error))

    with owned(tmp_path):
        refuse_owned(tmp_path)
        with owned(tmp_path / "."):
            pass
        assert (tmp_path / LOCK_NAME).exists()
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert len(refused) == 1
    attempt()
    assert len(refused) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=re.escape(str(folder))), owned(folder):
            pass
