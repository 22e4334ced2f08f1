"""Cuts the small recordings beside this script out of full ones of the released code.

The full ones hold whole networks (5 and 7 MB), the small ones their last blocks::

    PYTHONPATH=src python tests/golden/record.py FOLDER

FOLDER holds ``deit_rho07.safetensors`` and ``lvvit_s_rho07.safetensors``. Every number is copied
as the released code gave it. Only ``enter.*``, the tokens that enter the parts which the tests run,
are computed here, and without this library's paths: by timm's own blocks on the tokens that the
released code kept, and by the attention of the paper's Eq. 10-11 under its decisions. They are
written if the released logits and final tokens follow from them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import dynamicvit  # noqa: F401  registers LV-ViT with timm

#: The fronts of the names that are kept of both; the blocks come on top.
COMMON = """
    labels loss. teacher.logits teacher.tokens eval.logits
    train.decision. train.logits train.tokens grad.head.
    enter.index enter.pruned enter.masked student.norm. student.head.
"""


@dataclass(frozen=True)
class Cut:
    """What is kept of a recording.

    Attributes:
        name: of the recording.
        model: timm's name of the network.
        stages: of the recording.
        begin: the first of the blocks whose weights are kept.
        more: fronts of further names.
    """

    name: str
    model: str
    stages: tuple[int, ...]
    begin: int
    more: str


CUTS = (
    Cut(  # from the last stage on, so that the gradients of its prediction module follow
        name="deit",
        model="deit_tiny_patch16_224",
        stages=(3, 6, 9),
        begin=9,
        more="""
            student.score_predictor.2. grad.score_predictor.2. grad.blocks.11.
            train.draw.2 eval.score.2 eval.kept.1 eval.kept.2
        """,
    ),
    Cut(  # the first stage, and the last block
        name="lvvit_s",
        model="lvvit_s",
        stages=(4, 8, 12),
        begin=15,
        more="""
            student.score_predictor.0. student.aux_head.
            enter.first eval.score.0 eval.kept.0
        """,
    ),
)


@torch.no_grad()
def record(folder: Path, cut: Cut) -> None:
    """Writes the small recording of one network."""
    with safe_open(folder / f"{cut.name}_rho07.safetensors", framework="pt") as file:
        metadata = file.metadata()
        full = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    depth = int(metadata["depth"])
    network = timm.create_model(cut.model, embed_dim=48, num_heads=3, depth=depth, num_classes=10)
    student = {n.removeprefix("student."): v for n, v in full.items() if n.startswith("student.")}
    network.load_state_dict({n: v for n, v in student.items() if "score_predictor" not in n})
    full |= enter(network.eval(), full, cut)
    fronts = [*COMMON.split(), *cut.more.split()]
    fronts += [f"student.blocks.{i}." for i in range(cut.begin, depth)]
    small = {name: value for name, value in full.items() if name.startswith(tuple(fronts))}
    path = Path(__file__).with_name(f"{cut.name}.safetensors")
    save_file({name: value.contiguous() for name, value in small.items()}, path, metadata)
    path.chmod(0o644)


def enter(network: nn.Module, full: dict[str, Tensor], cut: Cut) -> dict[str, Tensor]:
    """The tokens that enter the first stage and the first kept block, checked to the end."""
    x = network._pos_embed(network.patch_embed(full["input"]))
    pruned, masked = x, x
    held = torch.arange(196).expand(2, -1)  # place in the grid of each token of the pruned path
    decision = torch.ones(2, 196)
    entered = {}
    for i, block in enumerate(network.blocks):
        if i == cut.stages[0]:  # one image will do
            entered["enter.first"] = pruned[:1, 1:]
        if i == cut.begin:
            entered |= {"enter.pruned": pruned, "enter.index": held, "enter.masked": masked}
        if i in cut.stages:
            stage = cut.stages.index(i)
            kept = full[f"eval.kept.{stage}"].sort(dim=1).values
            position = torch.searchsorted(held.contiguous(), kept)
            rows = torch.cat([torch.zeros_like(kept[:, :1]), 1 + position], dim=1)
            pruned, held = pruned.gather(1, rows[..., None].expand(-1, -1, 48)), kept
            decision = full[f"train.decision.{stage}"]
        pruned, masked = block(pruned), masked_block(block, masked, decision)

    tokens = network.norm(masked)
    close = {"atol": 1e-5, "rtol": 0.0}
    logits = network.forward_head(network.norm(pruned))
    torch.testing.assert_close(logits, full["eval.logits"], **close)
    torch.testing.assert_close(network.head(tokens[:, 0]), full["train.logits"], **close)
    tokens = network.aux_head(tokens) if hasattr(network, "aux_head") else tokens
    torch.testing.assert_close(tokens[:, 1:], full["train.tokens"], **close)
    return entered


def masked_block(block: nn.Module, x: Tensor, decision: Tensor) -> Tensor:
    """timm's block, in which a dropped token is seen by itself alone (Eq. 10-11)."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    seen = torch.cat([torch.ones(len(x), 1), decision], dim=1)[:, None, None]
    own = torch.eye(x.shape[1])
    weights = (query @ key.transpose(-2, -1) * attention.scale).softmax(dim=-1)
    weights = weights * (own + (1 - own) * seen)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    x = x + block.ls1(attention.proj((weights @ value).transpose(1, 2).flatten(2)))
    return x + block.ls2(block.mlp(block.norm2(x)))


if __name__ == "__main__":
    for cut in CUTS:
        record(Path(sys.argv[1]), cut)
