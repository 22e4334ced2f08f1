"""SIGKILL at any point costs time, never the run: it ends bit for bit where it would have."""

import signal
from pathlib import Path

import pytest

import mortal
from processes import in_fork


def test_a_run_that_is_killed_again_and_again_ends_where_it_would(tmp_path: Path) -> None:
    """At random lines of training's code, and in the middle of writing a checkpoint."""
    killed, finished = in_fork(mortal.kill, tmp_path, 4, 0)
    assert killed == 4
    assert finished


@pytest.mark.extended
def test_both_parts_of_a_run_on_own_classes_go_on(tmp_path: Path) -> None:
    ends = in_fork(mortal.kill_both_parts, tmp_path)
    assert ends == [signal.SIGKILL, signal.SIGKILL, 0]
