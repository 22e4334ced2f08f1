"""What each exact saving saves: the table of docs/notebook/speed.md.

::

    python benchmarks/exact_savings.py [--model deit_small_patch16_224] [--batch-size 1 8 32]

One pruned network is timed with and without each of them, in turn in one run; the ratio is of the
two times that lie next to each other. Logits are compared, for none may change them. Weights are
random, which no time depends on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median, quantiles
from unittest.mock import patch

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from dynamicvit import DynamicViT, decisions, reduction, sparsify
from dynamicvit.backbones.base import Adapter
from dynamicvit.core.networks import own_image_size
from dynamicvit.core.prediction import PredictionModule


@contextmanager
def whole_last_block(model: DynamicViT) -> Iterator[None]:
    """Without: every token goes through the last block, whether the head reads it or not."""
    with patch.object(type(model._adapter), "reads", Adapter.reads):
        yield


@contextmanager
def concatenation(model: DynamicViT) -> Iterator[None]:
    """Without: local and global features side by side for every token, as Eq. 4 is written."""

    def joined(module: PredictionModule, local: Tensor, shared: Tensor) -> Tensor:
        both = torch.cat([local, shared[:, None].expand_as(local)], dim=-1)
        return module.head[0](both)

    with patch.object(PredictionModule, "_joined", joined):
        yield


@contextmanager
def two_way_softmax(model: DynamicViT) -> Iterator[None]:
    """Without: log-probabilities of keeping and dropping, whose difference ranks the tokens."""

    def odds(module: PredictionModule, patches: Tensor, decision: Tensor | None) -> Tensor:
        return decisions.log_odds(module(patches, decision))

    with patch.object(PredictionModule, "odds", odds):
        yield


@contextmanager
def gathered_numbers(model: DynamicViT) -> Iterator[None]:
    """Without: kept tokens are looked up number by number instead of row by row."""

    def rows(x: Tensor, position: Tensor) -> Tensor:
        return x.gather(1, position[..., None].expand(-1, -1, x.shape[-1]))

    with patch.object(decisions, "_rows", rows):
        yield


@contextmanager
def unsorted_tokens(model: DynamicViT) -> Iterator[None]:
    """With: the best k in the order in which the search finds them, not in image order."""

    def top_k(score: Tensor, k: int) -> Tensor:
        return score.topk(k, dim=1, sorted=False).indices

    with patch.object(reduction, "top_k", top_k):
        yield


@contextmanager
def channels_last(model: DynamicViT) -> Iterator[None]:
    """With: images and the patch embedding's weights with their channels last in memory."""
    embed = model.backbone.patch_embed
    proj = embed.proj
    theirs, layout = proj.weight, torch.channels_last
    proj.weight = nn.Parameter(theirs.detach().contiguous(memory_format=layout))
    plain = type(embed).forward
    try:
        with patch.object(
            type(embed), "forward", lambda self, x: plain(self, x.contiguous(memory_format=layout))
        ):
            yield
    finally:
        proj.weight = theirs


Way = Callable[[DynamicViT], AbstractContextManager[None]]
"""Changes the network for as long as it lasts."""

#: Name, whether the library does it, and what changes it into the other way.
SAVINGS: dict[str, tuple[bool, Way]] = {
    "last block: what the head reads": (True, whole_last_block),
    "prediction modules without concatenation": (True, concatenation),
    "kept tokens gathered by rows": (True, gathered_numbers),
    "difference instead of a softmax of two": (True, two_way_softmax),
    "kept tokens in any order": (False, unsorted_tokens),
    "patch embedding with channels last": (False, channels_last),
}


@torch.inference_mode()
def measure(
    model: DynamicViT, images: Tensor, name: str, samples: int, threads: int
) -> tuple[list[float], list[float]]:
    """Seconds of single runs without and with a saving, in turn.

    Raises:
        RuntimeError: if the logits differ.
    """
    done, other_way = SAVINGS[name]
    expected = model(images)

    def other() -> None:
        with other_way(model):
            found = model(images)
        if not torch.allclose(found, expected, rtol=0.0, atol=1e-4 * float(expected.abs().max())):
            raise RuntimeError(f"{name}: other logits")

    other()
    timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=threads)
    times: tuple[list[float], list[float]] = ([], [])
    for sample in range(samples):
        for changed in (False, True) if sample % 2 else (True, False):
            # What it takes to change the network is not timed.
            with other_way(model) if changed else nullcontext():
                times[changed].append(timer.timeit(1).median)
    own, changed_way = times
    return (changed_way, own) if done else (own, changed_way)


def table_of(model: DynamicViT, sizes: list[int], samples: int, threads: int) -> Table:
    """One row for each saving and batch size."""
    table = Table(box=None, pad_edge=False)
    for heading in ("saving", "batch", "without ms", "with ms", "ratio [quartiles]", "done"):
        table.add_column(heading, no_wrap=True)
    for size in sizes:
        images = torch.randn(size, model.in_chans, *own_image_size(model))
        for name, (done, _) in SAVINGS.items():
            count = max(5, samples // size)
            without, with_it = measure(model, images, name, count, threads)
            ratios = [before / after for before, after in zip(without, with_it, strict=True)]
            low, middle, high = quantiles(ratios, n=4, method="inclusive")
            table.add_row(
                name,
                str(size),
                f"{median(without) * 1e3:.2f}",
                f"{median(with_it) * 1e3:.2f}",
                f"{middle:.3f} \\[{low:.3f}–{high:.3f}]",
                "yes" if done else "no",
            )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="deit_small_patch16_224", help="timm's name")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--samples", type=int, default=30, help="at batch 1; fewer at larger ones")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = sparsify(
        timm.create_model(args.model), args.keep_ratio, policy="removed", method="dynamicvit"
    ).eval()
    Console(width=110).print(table_of(model, args.batch_size, args.samples, args.threads))


if __name__ == "__main__":
    main()
