"""The page, of Gradio's parts."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import cache
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
from dynamicvit.utils.optional import need

#: Requests that wait at most.
QUEUE = 32

#: Seconds after which uploads are deleted, and from one look to the next. Not at once: the same
#: file of two users is one file, for which the second may still wait in the queue.
_AGE, _EVERY = 120, 30

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
    gr = gradio()
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

        @cache  # of the page, not of each that loads it
        def first() -> tuple[Any, Any]:
            return page.change(bundled[0].tensor, choices.own, choices.keep_ratio, budget)

        def take(method: str, keep_ratio: float, budget: str, chosen: Any) -> tuple[Any, ...]:
            found = bundled[chosen.index].tensor
            return found, *page.change(found, method, keep_ratio, budget)

        take.__annotations__["chosen"] = gr.SelectData  # so Gradio says what was chosen

        # One at a time: another run beside it would slow it.
        one = {"concurrency_limit": 1, "concurrency_id": "model"}
        blocks.load(first, None, shown, show_progress="minimal", api_visibility="private", **one)
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


def gradio() -> Any:
    """Gradio, imported without writing stubs.

    It writes one beside each of its sources at every import, but for a class without a file: most
    of the time that its import takes, and a change to what is installed.

    Raises:
        InputError: if it is missing.
    """
    file_of = inspect.getfile

    def no_file(thing: Any) -> str:
        if (getattr(thing, "__module__", None) or "").startswith("gradio."):
            raise OSError
        return file_of(thing)

    inspect.getfile = no_file
    try:
        return need("gradio", "app")
    finally:
        inspect.getfile = file_of


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
