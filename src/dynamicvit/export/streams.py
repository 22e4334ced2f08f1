"""OpenVINO over a batch: each thread takes images of its own.

Threads that share every layer wait for each other at its end. With two threads and 32 images that
took 1.4 to 1.8 times as long (docs/quantization.md). One image can't be shared out, so all threads
work on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynamicvit.export.runner import Runner

#: Images that a thread takes at a time: their activations should fit into its cache.
MOST_AT_ONCE = 16


def in_streams(core: Any, model: Any, settings: dict[str, Any], outputs: list[str]) -> Runner:
    """A runner for any number of images; it compiles for one, and for many, when first asked.

    Args:
        core: OpenVINO's.
        model: with any number of images as input.
        settings: for the CPU.
        outputs: names of the outputs, in order.
    """
    threads = torch.get_num_threads()
    made: dict[str, Any] = {}

    def one(images: Tensor) -> list[Tensor]:
        if "one" not in made:
            single = model.clone()
            single.reshape([1, *images.shape[1:]])
            made["one"] = core.compile_model(single, "CPU", settings)
        found = made["one"]({"images": images.numpy()})
        return [torch.from_numpy(found[name].copy()) for name in outputs]

    def many(images: Tensor) -> list[Tensor]:
        if "many" not in made:
            compiled = core.compile_model(model, "CPU", {**settings, "NUM_STREAMS": threads})
            made["many"] = [compiled.create_infer_request() for _ in range(threads)]
        parts, found = shares(images, threads), []
        # No callbacks, and so no AsyncInferQueue: the network's end waits for its threads, and
        # those, to let go of a callback of Python's, for the interpreter, which waits for that end.
        for first in range(0, len(parts), threads):
            working = list(zip(made["many"], parts[first : first + threads], strict=False))
            for request, share in working:
                request.start_async({"images": share.numpy()})
            for request, _ in working:
                request.wait()
                tensors = (request.get_tensor(name).data for name in outputs)
                found.append([torch.from_numpy(tensor.copy()) for tensor in tensors])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    return lambda images: one(images) if len(images) == 1 else many(images)


def shares(images: Tensor, threads: int) -> tuple[Tensor, ...]:
    """The batch in as many pieces as there are threads, or more where they would be large."""
    share = min(MOST_AT_ONCE, -(-len(images) // threads))
    return images.split(share)
