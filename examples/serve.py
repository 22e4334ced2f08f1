"""Serve exported classifiers with LitServe: batches that form by themselves, a budget a request.

::

    pip install litserve
    python examples/serve.py dense.xml 0.7.xml 0.5.xml
    curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?budget=0.7'

A file's name is its budget's. docs/serving.md says what is answered, what is refused, how fast.
"""

# Annotations are read by LitServe and FastAPI: no "from __future__ import annotations" here.
import argparse
import asyncio
import io
import json
import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
import torch
from fastapi import Depends, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from litserve.loops.simple_loops import BatchedLoop
from PIL import Image
from starlette.requests import ClientDisconnect

import dynamicvit
from dynamicvit.data import eval_transform
from dynamicvit.runtimes import load_exported

MOST_REQUESTS = 32
"""Read, waiting and computed at a time; one more is answered 503 at once."""

MOST_BATCH = 8
MOST_BYTES = 8 * 2**20
MOST_PIXELS = 16_000_000
MOST_ELONGATED = 20
"""How many times as long as the other a side may be: the short one is resized to the model's."""

FORMATS = ("JPEG", "PNG", "WEBP")
UPLOAD_SECONDS = 10.0
TOP = 5

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pixels are counted here

#: One image is decoded at a time, so that memory has a bound; the other cores compute.
DECODER = ThreadPoolExecutor(1)


class Limits:
    """ASGI middleware: a full service refuses a request before it reads the image."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most, self.held = app, most, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass one request on, or answer 503."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if self.held >= self.most:
            full = {"detail": f"{self.most} requests are waiting: try again"}
            return await JSONResponse(full, 503, {"Retry-After": "1"})(scope, receive, send)
        self.held += 1
        try:
            return await self.app(scope, receive, send)
        finally:
            self.held -= 1


async def body_of(request: Request) -> bytes:
    """The bytes of a request, given up when they are too many, or take too long."""
    too_large = HTTPException(413, f"more than {MOST_BYTES} bytes", {"Connection": "close"})
    stated = request.headers.get("Content-Length", "0")
    if not stated.isdecimal() or int(stated) > MOST_BYTES:
        raise too_large
    body = bytearray()

    async def receive() -> None:
        async for chunk in request.stream():
            body.extend(chunk)
            if len(body) > MOST_BYTES:
                raise too_large

    try:
        await asyncio.wait_for(receive(), UPLOAD_SECONDS)
    except asyncio.TimeoutError:
        said = f"no whole image after {UPLOAD_SECONDS:g} s"
        raise HTTPException(408, said, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "hung up") from None
    return bytes(body)


def pixels_of(body: bytes, transform: Any) -> np.ndarray:
    """The model's input, ``(C, height, width)``; what is too large is refused before decoding."""
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            short, long = sorted(image.size)
            if short * long > MOST_PIXELS or long > MOST_ELONGATED * short:
                what = f"{image.width} x {image.height} pixels: at most {MOST_PIXELS}"
                raise HTTPException(413, f"{what}, and 1 to {MOST_ELONGATED}")
            return transform(image).numpy()
    except HTTPException:
        raise
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"at most {MOST_PIXELS} pixels") from error
    except Exception as error:  # of any kind, for a broken file
        raise HTTPException(422, f"not a readable {', '.join(FORMATS)} image") from error


async def prepared(request: Request, budget: str | None = None) -> tuple[str, np.ndarray]:
    """A request's budget and image, ready for the model, or an answer of the 400s.

    A batch fails as a whole, so nothing of a single request may go wrong later than here.
    """
    transforms = request.app.state.transforms
    budget = budget or next(iter(transforms))
    if budget not in transforms:
        raise HTTPException(422, f"budget {budget[:40]!r}: give {', '.join(transforms)}")
    body = await body_of(request)
    decode = asyncio.get_running_loop().run_in_executor
    return budget, await decode(DECODER, pixels_of, body, transforms[budget])


class WhatWaits(BatchedLoop):
    """A batch is what came while the last one ran: nobody waits for a timer, no timer polls."""

    def get_batch_requests(
        self, lit_api: Any, request_queue: Any, transport: Any
    ) -> tuple[list[Any], list[Any]]:
        """The requests to compute now, and those that waited for too long."""
        found = [request_queue.get()]
        while len(found) < lit_api.max_batch_size and not request_queue.empty():
            found.append(request_queue.get())
        oldest = time.monotonic() - lit_api.request_timeout
        batch = [(queue, uid, asked) for queue, uid, came, asked in found if came >= oldest]
        return batch, [(queue, uid) for queue, uid, came, _ in found if came < oldest]


class Classifier(litserve.LitAPI):
    """Exported files, one a budget.

    Args:
        files: of each budget.
        threads: that compute.
    """

    def __init__(self, files: dict[str, Path], threads: int) -> None:
        super().__init__(max_batch_size=MOST_BATCH, loop=WhatWaits())
        self.files, self.threads = files, threads

    def setup(self, device: str) -> None:
        """Load the files, and compile them for one image and for several."""
        torch.set_num_threads(self.threads)
        self.models = {budget: load_exported(file) for budget, file in self.files.items()}
        for model in self.models.values():
            for images in (1, 2):
                model(torch.zeros(images, *model.input_shape))

    def decode_request(
        self, request: Annotated[tuple[str, np.ndarray], Depends(prepared)]
    ) -> tuple[str, np.ndarray]:
        """The request as :func:`prepared` left it."""
        return request

    def batch(self, inputs: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
        """The requests: those of one budget are put together in :meth:`predict`."""
        return inputs

    def predict(self, x: list[tuple[str, np.ndarray]], **_: Any) -> list[dict[str, Any]]:
        """The answers, in the order of the requests."""
        answers: dict[int, dict[str, Any]] = {}
        for budget, model in self.models.items():
            places = [place for place, (asked, _) in enumerate(x) if asked == budget]
            if places:
                images = torch.from_numpy(np.stack([x[place][1] for place in places]))
                found = answers_of(model, images)
                answers |= {
                    place: {"budget": budget, **answer}
                    for place, answer in zip(places, found, strict=True)
                }
        return [answers[place] for place in range(len(x))]

    def encode_response(self, output: dict[str, Any], **_: Any) -> Response:
        """The answer as JSON, written here once: FastAPI would walk through every index first."""
        return Response(json.dumps(output), media_type="application/json")


@torch.inference_mode()
def answers_of(model: Any, images: torch.Tensor) -> list[dict[str, Any]]:
    """For each image its likeliest classes, and each stage's kept patches, as indices."""
    output = model.forward_pruned(images)
    shares, classes = output.logits.softmax(-1).topk(min(TOP, model.num_classes))
    names = model.pretrained_cfg["label_names"]
    return [
        {
            "classes": [names[index] if names else index for index in classes[image].tolist()],
            "probabilities": [round(share, 4) for share in shares[image].tolist()],
            "grid": list(output.grid),
            "kept": [stage[image].tolist() for stage in output.kept_index],
        }
        for image in range(len(images))
    ]


def service(files: list[Path], threads: int) -> litserve.LitServer:
    """The server of some files.

    Raises:
        dynamicvit.InputError: for a file that is none of an image classifier, or two of one name.
    """
    transforms, about = {}, {}
    for file in files:
        model = load_exported(file)
        if model.task != "classification" or model.frames is not None:
            raise dynamicvit.InputError(f"{file} is no image classifier: give files of those")
        if file.stem in transforms:
            raise dynamicvit.InputError(f"{file}: there is a budget {file.stem} already")
        transforms[file.stem] = eval_transform(model)
        about[file.stem] = {"keep_ratios": model.description.keep_ratios}
    api = Classifier({file.stem: file for file in files}, threads)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        timeout=30,
        middlewares=[(Limits, {"most": MOST_REQUESTS})],
        model_metadata={"budgets": about},
        restart_workers=True,
    )
    server.app.state.transforms = transforms
    return server


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve exported classifiers.")
    parser.add_argument("files", nargs="+", type=Path, help="the first one's budget is the default")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: every machine may ask")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    # LitServe ends its processes after Ctrl-C; a SIGTERM would leave them behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)  # of this process, which only decodes
    try:
        server = service(arguments.files, arguments.threads)
    except dynamicvit.InputError as error:
        parser.error(str(error))
    server.run(
        arguments.host,
        arguments.port,
        num_api_servers=1,  # Limits counts the requests of one process
        log_level="warning",
        generate_client_file=False,
        limit_concurrency=8 * MOST_REQUESTS,  # connections
    )


if __name__ == "__main__":
    main()
