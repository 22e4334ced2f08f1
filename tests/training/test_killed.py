"""SIGKILL at any point costs time, never the run: it ends bit for bit where it would have."""

from pathlib import Path

import mortal
from processes import in_fork


def test_a_run_that_is_killed_again_and_again_ends_where_it_would(tmp_path: Path) -> None:
    """At random lines of training's code, and in the middle of writing a checkpoint."""
    killed, finished = in_fork(mortal.kill, tmp_path, 9, 0)
    assert killed == 9
    assert finished
