"""Whether the Hugging Face Hub can be reached, before its client tries for half a minute."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

#: Seconds in which a server must take a connection.
_PATIENCE = 3.0


@contextmanager
def hub_if_reachable() -> Iterator[str | None]:
    """Let the Hub's client look into its cache alone where its server can't be reached.

    Yields:
        Why it looks nowhere else, for an error message; ``None`` where the server can be reached.
    """
    before = constants.HF_HUB_OFFLINE
    problem = None
    if not before and not _answers(constants.ENDPOINT):
        problem = f"{constants.ENDPOINT} can't be reached, and the cache has none"
    constants.HF_HUB_OFFLINE = before or problem is not None
    try:
        yield problem
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    """Whether a server takes connections; a proxy is taken to answer."""
    place = urlsplit(url)
    if place.scheme in getproxies():
        return True
    port = place.port or {"http": 80}.get(place.scheme, 443)
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((place.hostname or "", port), _PATIENCE).close()
        except OSError:
            return
        found.append(True)

    # In a thread, as a look-up of a name has no time limit of its own.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(found)
