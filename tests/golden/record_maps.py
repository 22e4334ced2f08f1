"""Records small ConvNeXts and Swins with cheap paths, by a reference that full recordings check.

The recordings of the released code are of networks and images too large for the repository
(1.5 and 2.6 MB, and no seed gives their weights)::

    PYTHONPATH=src:tests python tests/golden/record_maps.py FOLDER

FOLDER holds ``dyconvnext_rho07.safetensors`` and ``dyswin_rho07.safetensors``. The reference here
is written from the facts of the released form, apart from this library's paths. It must give every
logit, score, kept set and feature of theirs, and the gradients; then it computes the same of the
small networks, whose weights and images ``small_maps.py`` draws.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from small_maps import SMALL

STAGES = (1, 2, 3)
RATIOS = (0.7, 0.7 - 0.2, 0.7 - 0.4)
CLASS = 3

Weights = dict[str, Tensor]
Decide = Callable[[int, Tensor], Tensor]
"""From the number of a prediction module and log-probabilities ``(B, N, 2)``: ``(B, N)``."""


class Reference:
    """A released network; maps are ``(B, rows, columns, C)``.

    Args:
        weights: under the released names.
        heads: of a Swin's stages; none for a ConvNeXt.
        window: side of a Swin's windows.
    """

    def __init__(self, weights: Weights, heads: tuple[int, ...] = (), window: int = 7) -> None:
        self.weights, self.heads, self.window = weights, heads, window
        self.swin = bool(heads)
        self.eps = 1e-5 if heads else 1e-6
        self.front = "layers.2." if heads else ""

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.linear(x, weight.flatten(1), self.weights.get(f"{name}.bias"))

    def conv(self, name: str, x: Tensor, **how: int) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, **how).permute(0, 2, 3, 1)

    def predictor(self, stage: int, x: Tensor) -> Tensor:
        """``(B, N, 2)`` log-probabilities, "keep" first."""
        name = f"{self.front}score_predictor.{stage}"
        x = self.norm(f"{name}.in_conv.0", x.flatten(1, 2))
        x = F.gelu(self.linear(f"{name}.in_conv.1", x))
        local, whole = x.chunk(2, dim=-1)
        x = torch.cat([local, whole.mean(dim=1, keepdim=True).expand_as(local)], dim=-1)
        x = F.gelu(self.linear(f"{name}.out_conv.0", x))
        x = F.gelu(self.linear(f"{name}.out_conv.2", x))
        return self.linear(f"{name}.out_conv.4", x).log_softmax(dim=-1)

    def depth(self, stage: int) -> int:
        first = f"layers.{stage}.blocks." if self.swin else f"stages.{stage}."
        names = (n.removeprefix(first) for n in self.weights if n.startswith(first))
        return 1 + max(int(name.split(".")[0]) for name in names)

    def down(self, stage: int, x: Tensor) -> Tensor:
        """What comes before a stage."""
        if stage == 0:
            name = "patch_embed.proj" if self.swin else "downsample_layers.0.0"
            x = self.conv(name, x.permute(0, 2, 3, 1), stride=4)
            return self.norm("patch_embed.norm" if self.swin else "downsample_layers.0.1", x)
        if not self.swin:
            x = self.norm(f"downsample_layers.{stage}.0", x)
            return self.conv(f"downsample_layers.{stage}.1", x, stride=2)
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        name = f"layers.{stage - 1}.downsample"
        return self.linear(f"{name}.reduction", self.norm(f"{name}.norm", torch.cat(parts, dim=-1)))

    def mixed(self, stage: int, i: int, x: Tensor) -> Tensor:
        """By the depth-wise convolution; or with attention's residual."""
        if not self.swin:
            return self.conv(f"stages.{stage}.{i}.dwconv", x, padding=3, groups=x.shape[-1])
        name, shift = f"layers.{stage}.blocks.{i}", self.window // 2 * (i % 2)
        if min(x.shape[1:3]) <= self.window:
            shift = 0
        y = self.norm(f"{name}.norm1", x).roll((-shift, -shift), (1, 2))
        y = self.attention(f"{name}.attn", y, self.heads[stage], shift)
        return x + y.roll((shift, shift), (1, 2))

    def windows(self, x: Tensor) -> Tensor:
        """``(B, windows, W², C)``."""
        side = self.window
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def attention(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        side, (_, height, width, dim) = self.window, x.shape
        qkv = self.windows(self.linear(f"{name}.qkv", x)).unflatten(-1, (3, heads, -1))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5)
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        apart = places[:, None] - places[None] + side - 1
        table = self.weights[f"{name}.relative_position_bias_table"]
        bias = table[apart[..., 0] * (2 * side - 1) + apart[..., 1]].permute(2, 0, 1)
        scores = query @ key.transpose(-1, -2) * (dim // heads) ** -0.5 + bias
        if shift:  # what came in from the other end of the map
            edges = [
                (torch.arange(n) >= n - side).int() + (torch.arange(n) >= n - shift).int()
                for n in (height, width)
            ]
            region = self.windows((3 * edges[0][:, None] + edges[1])[None, ..., None])[0, ..., 0]
            apart = region[:, :, None] != region[:, None]
            scores = scores + torch.where(apart, -100.0, 0.0)[None, :, None]
        y = (scores.softmax(dim=-1) @ value).transpose(2, 3).flatten(3)
        y = y.unflatten(2, (side, side)).unflatten(1, (height // side, -1))
        return self.linear(f"{name}.proj", y.transpose(2, 3).flatten(3, 4).flatten(1, 2))

    def slow(self, stage: int, i: int, x: Tensor) -> Tensor:
        if self.swin:
            name = f"layers.{stage}.blocks.{i}"
            hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
            return self.linear(f"{name}.mlp.fc2", hidden)
        name = f"stages.{stage}.{i}"
        hidden = F.gelu(self.linear(f"{name}.pwconv1", self.norm(f"{name}.norm", x)))
        return self.linear(f"{name}.pwconv2", hidden) * self.weights[f"{name}.gamma"]

    def fast(self, i: int, x: Tensor) -> Tensor:
        if self.swin:
            name = f"layers.2.blocks.{i}.fastmlp.fc1"
            return self.linear(f"{name}.1", self.norm(f"{name}.0", x))
        name = f"stages.2.{i}.fast_path"
        return self.linear(f"{name}.1", self.norm(f"{name}.0", x)) * self.weights[f"{name}_gamma"]

    def block(self, stage: int, i: int, x: Tensor) -> Tensor:
        mixed = self.mixed(stage, i, x)
        return (mixed if self.swin else x) + self.slow(stage, i, mixed)

    def before(self, images: Tensor) -> Tensor:
        """The map before the first prediction module."""
        x = images
        for stage in (0, 1):
            x = self.down(stage, x)
            for i in range(self.depth(stage)):
                x = self.block(stage, i, x)
        x = self.down(2, x)
        for i in range(STAGES[0]):
            x = self.block(2, i, x)
        return x

    def after(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the final map ``(B, N, C)`` after the final norm."""
        x = self.down(3, x)
        for i in range(self.depth(3)):
            x = self.block(3, i, x)
        normed = self.norm("norm", x)
        pooled = normed.mean((1, 2)) if self.swin else self.norm("norm", x.mean((1, 2)))
        return self.linear("head", pooled), normed.flatten(1, 2)

    def inference(self, images: Tensor) -> Weights:
        """All that is recorded of it."""
        x, found, slow = self.before(images), {}, torch.zeros(())
        for i in range(STAGES[0], self.depth(2)):
            if i in STAGES:
                stage = STAGES.index(i)
                scores = self.predictor(stage, x)[..., 0]
                kept = scores.topk(int(scores.shape[1] * RATIOS[stage])).indices
                found[f"eval.score.{stage}"] = scores
                found[f"eval.kept.{stage}"] = kept.sort(dim=1).values.int()
                slow = torch.zeros_like(scores).scatter(1, kept, 1.0).unflatten(1, x.shape[1:3])
            mixed = self.mixed(2, i, x)
            branch = torch.where(slow[..., None] > 0, self.slow(2, i, mixed), self.fast(i, mixed))
            x = (mixed if self.swin else x) + branch
        return found | {"eval.logits": self.after(x)[0]}

    def training(self, images: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The released form, which carries two maps, under one draw at all modules."""
        one = two = self.before(images)
        mask = torch.ones(())
        for i in range(STAGES[0], self.depth(2)):
            if i in STAGES:
                merged = one if i == STAGES[0] else one * mask + two * (1 - mask)
                keep = self.predictor(STAGES.index(i), merged)[..., 0].exp()
                mask = (draw + keep - keep.detach()).unflatten(1, one.shape[1:3])[..., None]
            merged = one * mask + two * (1 - mask)
            mixed = self.mixed(2, i, merged)
            to_one, to_two = mixed * mask + one * (1 - mask), mixed * (1 - mask) + two * mask
            bases = (mixed, mixed) if self.swin else (one, two)
            one, two = bases[0] + self.slow(2, i, to_one), bases[1] + self.fast(i, to_two)
        return self.after(one * mask + two * (1 - mask))

    def recorded(self, images: Tensor, draw: Tensor) -> Weights:
        """What a recording holds beside weights and images."""
        with torch.no_grad():
            found = self.inference(images)
        learned = {n: w.requires_grad_() for n, w in self.weights.items() if w.is_floating_point()}
        logits, features = self.training(images, draw)
        found |= {"train.logits": logits.detach(), "train.features": features.detach()}
        total = logits.log_softmax(dim=-1)[:, CLASS].sum()
        gradients = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
        named = zip(learned, gradients, strict=True)
        return found | {f"grad.{name}": value for name, value in named if value is not None}


def check(file: Path, **sizes: Any) -> set[str]:
    """The reference gives what a full recording holds; names of the gradients there."""
    with safe_open(file, framework="pt") as opened:
        full = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    full = {n: t.float() if t.dtype == torch.float16 else t for n, t in full.items()}
    weights = {n.removeprefix("model."): t for n, t in full.items() if n.startswith("model.")}
    found = Reference(weights, **sizes).recorded(full["input"], full["train.draw"])
    compared = [name for name in full if name.startswith(("eval.", "train.l", "train.f", "grad."))]
    for name in compared:
        error = (found[name].double() - full[name].double()).norm() / full[name].double().norm()
        assert error < 1e-5, f"{file.name}: {name}: {error:.1e}"
    print(f"{file.name}: {len(compared)} tensors agree to 1e-5")
    return {name for name in compared if name.startswith("grad.")}


def main() -> None:
    """Check, then record."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name, small in SMALL.items():
        known = {"heads": small.heads} if small.heads else {}
        gradients = check(folder / f"{name}_rho07.safetensors", **known)
        more = {**known, "window": small.window} if known else {}
        reference = Reference(small.weights(), **more)
        found = reference.recorded(small.images(), small.draw())
        for stage in range(3):
            ranked = found[f"eval.score.{stage}"].sort(dim=1, descending=True).values
            count = found[f"eval.kept.{stage}"].shape[1]
            gap = float((ranked[:, count - 1] - ranked[:, count]).min())
            assert gap > 1e-4, f"{name}: scores at the cut of stage {stage} are {gap:.1e} apart"
        found = {n: t for n, t in found.items() if "grad." not in n or n in gradients}
        path = Path(__file__).with_name(f"{name}.safetensors")
        save_file({n: t.detach().contiguous() for n, t in found.items()}, path)
        path.chmod(0o644)
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
