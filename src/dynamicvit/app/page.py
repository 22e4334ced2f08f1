"""The page: Gradio's, on this machine alone, without a request to any other."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from dynamicvit.app import markup
from dynamicvit.app.choices import STEP, Choices
from dynamicvit.app.compared import side_by_side
from dynamicvit.app.inputs import Inputs
from dynamicvit.app.pictures import pictures_of
from dynamicvit.data.video.clip_sources import clip_endings
from dynamicvit.errors import InputError
from dynamicvit.utils.files import temporary_folder
from dynamicvit.utils.optional import need

#: Requests that wait at most, and pages whose input is remembered.
QUEUE, PAGES = 32, 32

#: Seconds after which uploads are deleted, and from one look to the next. Not at once: the same
#: file of two users is one file, for which the second may still wait in the queue.
_AGE, _EVERY = 120, 30

#: The browser itself then asks no other machine for anything.
_POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"

_KEEP_RATIO, _SCHEDULE = "keep ratio", "tuned schedule"


@dataclass(frozen=True)
class Page:
    """What the page does, apart from how it looks.

    Attributes:
        choices: of methods and budgets.
        inputs: how files are read.
        title: what the model is called.
        names: of the classes; by default the model's own.
    """

    choices: Choices
    inputs: Inputs
    title: str
    names: list[str] | None = None

    def show(self, tensor: Tensor, method: str, keep_ratio: float, budget: str) -> tuple[str, str]:
        """A message and a run, as HTML; one of the two.

        Args:
            tensor: the input.
            method: its name.
            keep_ratio: ρ.
            budget: whether it counts, or the model's own schedule.
        """
        ratio = None if budget == _SCHEDULE and method == self.choices.own else keep_ratio
        model = self.choices.at(method, ratio)
        run = side_by_side(model, tensor, self.names, self.choices.costs(model, tensor.shape[-2:]))
        return "", markup.result(run, pictures_of(run, self.inputs.pictures(tensor)))

    def upload(self, file: tuple[str, str] | None, *how: Any) -> tuple[Any, ...]:
        """Of a file: the input, a message, a run, and the place for the next file."""
        import gradio as gr

        if file is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        try:
            tensor = self.inputs.read(Path(file[0]), file[1])
            return tensor, *self.show(tensor, *how), None
        except InputError as error:
            return gr.skip(), markup.note(str(error)), gr.skip(), None

    def change(self, tensor: Tensor, *how: Any) -> tuple[Any, Any]:
        """Of another method or budget: a message and a run."""
        import gradio as gr

        try:
            return self.show(tensor, *how)
        except InputError as error:
            return markup.note(str(error)), gr.skip()


def build(page: Page, frontier: Path | None = None) -> Any:
    """Gradio's page.

    Args:
        page: what it does.
        frontier: a picture of what ``dynamicvit tune`` found.

    Raises:
        InputError: if Gradio is missing.
    """
    gr: Any = need("gradio", "app")
    choices, inputs = page.choices, page.inputs
    bundled = inputs.bundled()
    budget = _KEEP_RATIO if choices.schedule is None else _SCHEDULE
    with gr.Blocks(
        title="dynamicvit", analytics_enabled=False, delete_cache=(_EVERY, _AGE)
    ) as blocks:
        gr.HTML(
            f'<h1 class="dv-title">dynamicvit</h1>Which patches {escape(page.title)} looks at, '
            "and what that saves."
        )
        tensor = gr.State(bundled[0].tensor)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                video = inputs.frames is not None
                file = _drop(
                    gr,
                    label=f"Drop {'a video' if video else 'an image'}, or take one below",
                    height=150,
                    file_types=clip_endings().split(", ") if video else ["image"],
                )
                gallery = gr.Gallery(
                    [(each.picture, each.name) for each in bundled],
                    show_label=False,
                    columns=3,
                    height=230 if len(bundled) > 3 else 130,
                    elem_id="bundled",
                    allow_preview=False,
                    object_fit="cover",
                    interactive=False,
                    buttons=[],
                )
                slider = gr.Slider(
                    choices.least,
                    1.0,
                    value=round(choices.keep_ratio, 2),
                    step=STEP,
                    label="Keep ratio ρ",
                    buttons=[],
                )
                method = gr.Dropdown(list(choices.models), value=choices.own, label="Method")
                fixed = gr.Radio(
                    [_SCHEDULE, _KEEP_RATIO],
                    value=budget,
                    label=f"Budget of {choices.own}",
                    visible=choices.schedule is not None,
                )
            with gr.Column(scale=3, min_width=320):
                message, result = gr.HTML(elem_id="message"), gr.HTML(elem_id="result")
                if frontier is not None:
                    gr.Markdown("#### What `dynamicvit tune` found")
                    gr.Image(
                        frontier, show_label=False, container=False, interactive=False, buttons=[]
                    )
        how = [method, slider, fixed]
        shown = [message, result]
        message.value, result.value = page.change(
            bundled[0].tensor, choices.own, choices.keep_ratio, budget
        )

        def take(method: str, keep_ratio: float, budget: str, chosen: Any) -> tuple[Any, ...]:
            found = bundled[chosen.index].tensor
            return found, *page.change(found, method, keep_ratio, budget)

        take.__annotations__["chosen"] = gr.SelectData  # so Gradio says what was chosen

        # One at a time: another run beside it would slow it.
        one = {"concurrency_limit": 1, "concurrency_id": "model"}
        file.upload(page.upload, [file, *how], [tensor, *shown, file], api_name="upload", **one)
        gallery.select(take, how, [tensor, *shown], api_visibility="private", **one)
        for control, public in ((slider, True), (method, False), (fixed, False)):
            control.change(
                page.change,
                [tensor, *how],
                shown,
                trigger_mode="always_last",
                show_progress="minimal",
                api_name="change" if public else None,
                api_visibility="public" if public else "private",
                **one,
            )
    return blocks.queue(max_size=QUEUE, default_concurrency_limit=1)


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
        gr: Any = need("gradio", "app")
        from starlette.middleware import Middleware

        blocks = build(page, frontier)
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


def _drop(gr: Any, **look: Any) -> Any:
    """Gradio's place for files, which hands over a file's path and name, and fetches nothing.

    Its functions are replaced on the object: Gradio writes files beside a class of one's own.
    """
    file = gr.File(**look)
    move = file.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> tuple[str, str] | None:
        if payload is None:
            return None
        return payload.path, Path(payload.orig_name or payload.path).name

    async def moved(place: Any) -> Any:
        if re.match(r"\w+://", str(place)):
            raise gr.Error("addresses are not fetched: upload a file")
        return await move(place)

    file.preprocess, file.async_move_resource_to_block_cache = preprocess, moved
    return file
