"""How much of the MACs ratio one image can show: a network against its matrix products alone.

::

    python benchmarks/one_image.py [--model deit_small_patch16_224] [--runtime openvino] [--tile 16]

One image gives a product as many rows as it has tokens, and its weights are read from memory for
these alone, whether they are many or few. So the products themselves gain less than their MACs
promise. Timed in turn in one run: a network dense and pruned, and only the linear layers of its
blocks, at the rows that they have in each. What is left of the network's ratio by the products' is
what dropping itself costs: prediction modules, gathering, operations too small to shrink.

Weights are random, which no time depends on. For timm's plain vision transformers.
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import openvino
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynamicvit import DynamicViT, sparsify, tiled_keep_ratios
from dynamicvit.costs import DENSE, costs_of, executed_macs
from dynamicvit.evaluation.bench import time_in_turn
from dynamicvit.runtimes import export, load_exported


class Products(nn.Module):
    """The linear layers of a network's blocks, each for the tokens that it would have.

    Args:
        model: whose blocks and schedule they are of.
    """

    def __init__(self, model: DynamicViT) -> None:
        super().__init__()
        costs = costs_of(model, len(model.schedule.stages))
        kept = dict(zip(model.schedule.stages, model.schedule.kept(costs.num_patches), strict=True))
        self.blocks = model.blocks
        self.rows, now = [], costs.num_patches
        for depth in range(model.depth):
            now = kept.get(depth, now)
            self.rows.append(costs.num_prefix + now)

    def forward(self, x: Tensor) -> Tensor:
        """From ``(1, T, C)`` to ``(1, 1, C)``: the last block for the class token only.

        Args:
            x: any numbers.
        """
        width = x.shape[-1]
        *blocks, last = self.blocks
        for block, rows in zip(blocks, self.rows, strict=False):
            x = block.attn.proj(block.attn.qkv(x[:, :rows])[..., :width])
            x = block.mlp.fc2(block.mlp.fc1(x))
        weight, bias = last.attn.qkv.weight, last.attn.qkv.bias
        pairs = F.linear(x[:, : self.rows[-1]], weight[width:], bias[width:])
        x = F.linear(x[:, :1], weight[:width], bias[:width]) + pairs[:, :1, :width]
        return last.mlp.fc2(last.mlp.fc1(last.attn.proj(x)))


Work = Callable[[], object]


def in_pytorch(network: nn.Module, x: Tensor, precision: str) -> Work:
    """Eager mode; in bfloat16 throughout, for autocast casts weights at every call."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32

    @torch.inference_mode()
    def run() -> object:
        return network(x)

    network, x = network.to(kind), x.to(kind)
    return run


def in_openvino(network: nn.Module, x: Tensor, precision: str) -> Work:
    """Compiled for one image."""
    program = torch.export.export(network, (x,))
    compiled = openvino.Core().compile_model(
        openvino.convert_model(program),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    return partial(compiled, [x.numpy()])


def in_onnx(network: nn.Module, x: Tensor, precision: str) -> Work:
    """A session with as many threads as torch has."""
    del precision
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    file = io.BytesIO()
    written: Any = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    written.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    return partial(session.run, None, {session.get_inputs()[0].name: x.numpy()})


#: Of each runtime: its precisions, what runs the products alone, and the suffix of networks' files.
RUNTIMES: dict[str, tuple[tuple[str, ...], Callable[..., Work], str | None]] = {
    "eager": (("fp32", "bf16"), in_pytorch, None),
    "openvino": (("fp32", "bf16"), in_openvino, ".xml"),
    "onnx": (("fp32",), in_onnx, ".onnx"),
}


def main() -> None:
    """Build, time and print."""
    options = _options()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    backbone = timm.create_model(options.model).eval()
    pruned = sparsify(backbone, options.keep_ratio, policy="removed", method="dynamicvit").eval()
    if options.tile is not None:
        pruned.keep_ratio = tiled_keep_ratios(pruned, options.tile)
    dense = DynamicViT(backbone, DENSE, []).eval()
    promised = executed_macs(dense) / executed_macs(pruned)
    console = Console()
    console.print(f"{options.model}, tokens {Products(pruned).rows}, MACs ratio {promised:.2f}")
    table = Table("runtime", "type", "", "dense ms", "pruned ms", "ratio [quartiles]", "share")
    for name in options.runtime or RUNTIMES:
        for precision in RUNTIMES[name][0]:
            with TemporaryDirectory() as folder:
                _time(name, precision, dense, pruned, Path(folder), options, table)
    console.print(table)
    console.print("share: of the products their own MACs ratio, of the network the products' ratio")


def _time(
    name: str,
    precision: str,
    dense: DynamicViT,
    pruned: DynamicViT,
    folder: Path,
    options: argparse.Namespace,
    table: Table,
) -> None:
    """Two rows: the products alone, and the network."""
    _, alone, suffix = RUNTIMES[name]
    tokens = torch.randn(1, Products(dense).rows[0], dense.num_features)
    images = torch.randn(1, 3, *dense.default_cfg["input_size"][1:])
    products = [Products(each) for each in (dense, pruned)]
    promised = _flops(products[0], tokens) / _flops(products[1], tokens)
    work = [alone(_copy(each), tokens, precision) for each in products]
    for label, network in (("dense", dense), ("pruned", pruned)):
        if suffix is None:
            work.append(in_pytorch(_copy(network), images, precision))
            continue
        file = folder / f"{label}{suffix}"
        export(network, file)
        exported = load_exported(file, precision)
        work.append(partial(exported.outputs, images))
    times = time_in_turn(work, options.threads, options.seconds)
    ratios = [times[0].over(times[1]), times[2].over(times[3])]
    shares = (ratios[0].median / promised, ratios[1].median / ratios[0].median)
    for place, label in enumerate(("products", "network")):
        before, after, ratio = *times[2 * place : 2 * place + 2], ratios[place]
        table.add_row(
            name,
            precision,
            label,
            f"{1e3 * before.spread.median:.2f}",
            f"{1e3 * after.spread.median:.2f}",
            f"{ratio.median:.2f} [{ratio.low:.2f}–{ratio.high:.2f}]",
            f"{100 * shares[place]:.0f} %",
        )


@torch.inference_mode()
def _flops(products: Products, tokens: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        products(tokens)
    return counter.get_total_flops()


def _copy(network: nn.Module) -> nn.Module:
    """With weights of its own: none may be in a cache because another has just read it."""
    return copy.deepcopy(network)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--keep-ratio", type=float, default=0.7)
    parser.add_argument("--tile", type=int)
    parser.add_argument("--runtime", action="append", choices=list(RUNTIMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each precision")
    return parser.parse_args()


if __name__ == "__main__":
    main()
