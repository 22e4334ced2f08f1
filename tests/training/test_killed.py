"""SIGKILL at any point costs time, never the run: it ends bit for bit where it would have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mortal


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_run_that_is_killed_again_and_again_ends_where_it_would(tmp_path: Path) -> None:
    """At random lines of training's code, and in the middle of writing a checkpoint."""
    kills = 9
    done = subprocess.run(
        [sys.executable, mortal.__file__, tmp_path, str(kills), "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kills} killed")
