"""The page served on this machine alone, without a request to any other."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynamicvit.app import markup
from dynamicvit.app.page import Page, build
from dynamicvit.errors import InputError
from dynamicvit.utils.files import temporary_folder

#: Pages whose input is remembered.
PAGES = 32

#: The browser itself then asks no other machine for anything.
_POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"


@contextmanager
def serving(
    page: Page, host: str = "127.0.0.1", port: int = 7860, frontier: Path | None = None
) -> Iterator[str]:
    """Serve the page meanwhile; yields its address. Files that were uploaded are deleted.

    Args:
        page: what it does.
        host: address to listen on; others than this machine see the page unless it is a loopback.
        port: 0 takes any that is free.
        frontier: as for :func:`build`.

    Raises:
        InputError: for a host or port that can't be listened on, or if Gradio is missing.
    """
    port = _free(host, port)
    with temporary_folder() as folder, _settings(folder, host):
        blocks = build(page, frontier)
        import gradio as gr
        from starlette.middleware import Middleware

        try:
            _, url, _ = blocks.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                max_file_size=page.inputs.most_bytes,
                state_session_capacity=PAGES,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                theme=gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"]),
                css=markup.STYLE,
                app_kwargs={"middleware": [Middleware(_NothingFetched)]},
            )
        except OSError as error:
            raise InputError(f"--host {host} --port {port} can't be served ({error})") from error
        try:
            yield url
        finally:
            blocks.close(verbose=False)


@contextmanager
def _settings(folder: Path, host: str) -> Iterator[None]:
    """Gradio's settings that are in the environment: where uploads lie, nothing said to anybody."""
    own = f"127.0.0.1,localhost,{host}"  # Gradio asks its own server whether it is up
    settings = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "NO_PROXY": own,
        "no_proxy": own,
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _free(host: str, port: int) -> int:
    """The port, if it can be listened on; any that is free for 0.

    Raises:
        InputError: if it can't be.
    """
    try:
        kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return probe.getsockname()[1]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"--port {port} is in use: give another, or 0 for any") from error
        raise InputError(f"--host {host} --port {port}: {error.strerror or error}") from error


class _NothingFetched:
    """Lets neither the page nor the server fetch from other machines.

    Args:
        app: the server.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY)
                message["headers"] = [*message.get("headers", ()), policy]
            await send(message)

        if re.search(r"/(file|proxy)=\w+:", scope.get("path", "")):
            scope = {**scope, "path": "/none", "raw_path": b"/none"}
        await self.app(scope, receive, with_policy)
