"""SIGINT and SIGTERM held back until a step is done; and the stack on which signals are handled."""

from __future__ import annotations

import ctypes
import signal
import sys
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


class SignalStack(ctypes.Structure):
    """Linux's ``stack_t``: where the thread's signals are handled; flags 2 for its own stack."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack | None:
    """This thread's, ``None`` on other systems than Linux."""
    if sys.platform != "linux":
        return None
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found


def set_signal_stack(stack: SignalStack | None) -> None:
    """Handle this thread's signals there from now on; ``None`` changes nothing."""
    if stack is not None:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None)


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Leave the thread's stack for signals as it was, whatever a runtime sets meanwhile.

    Each of OpenVINO's cores sets one of its own, and puts back what was there when it goes. When
    the older of two goes first, that is memory long freed: the next signal, a Ctrl-C, would end the
    process by a segmentation fault.
    """
    before = signal_stack()
    try:
        yield
    finally:
        set_signal_stack(before)
