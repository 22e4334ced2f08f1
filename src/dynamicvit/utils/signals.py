"""SIGINT and SIGTERM during training: held back until a step is done, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """A signal has asked to stop; what :func:`~dynamicvit.training.train` raises, it has saved.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__()
        self.signum = signum


class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        signum: the signal, or 0.
    """

    signum = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM in place of acting on them; a second SIGINT acts at once.

    Within a step they would leave it half done, or be lost: Python ignores what is raised while
    the data loader's ``__del__`` ends its workers. A SIGTERM after a SIGINT is no second request:
    torchrun answers Ctrl-C with one. Outside the main thread, where Python lets no one handle
    signals, nothing is noted.
    """
    request = StopRequest()

    def note(signum: int, frame: object) -> None:
        if request.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = request.signum or signum

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
