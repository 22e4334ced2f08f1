"""Processes that tests start, forked from one that has imported the package and run nothing.

Two imports more would take longer than what is tested, and a process that has threads, a device or
autograd in use can't be forked.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["accelerate", "dynamicvit.training", "dynamicvit.cli"])


def fork_readers() -> None:
    """Let a process of ``FORKS`` fork those that it starts: else it starts a server of its own."""
    multiprocessing.set_start_method("fork", force=True)


def in_this_process(words: list[str], input: str, **_: Any) -> SimpleNamespace:
    """In place of ``subprocess.run``: Python's code, given last, without a start of Python."""
    said = io.StringIO()
    with redirect_stdout(said), patch.object(sys, "stdin", io.StringIO(input)):
        exec(words[-1], {})
    return SimpleNamespace(returncode=0, stdout=said.getvalue())


def in_fork(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work(*arguments)``, a function of a module, gives in a process of its own."""
    with ProcessPoolExecutor(1, FORKS) as pool:
        return pool.submit(work, *arguments).result()


def run_two(work: Callable[..., None], *arguments: Any) -> None:
    """Do the work in two processes, with the variables that torchrun sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = [
        FORKS.Process(target=_launched, args=(rank, port, work, arguments), daemon=True)
        for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(300)  # those that disagree wait for each other
    assert [process.exitcode for process in both] == [0, 0]


def _launched(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(*arguments)
