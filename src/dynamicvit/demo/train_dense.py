"""Train the demo's dense model: ``python -m dynamicvit.demo.train_dense --out FILE``.

On cluttered scenes the model stays at chance for long, as it must find the digit before it can
learn digits. So training begins with clean scenes, seen through a small window of patches around
the digit, which is also several times faster; both clutter and window grow to the whole scene.

It takes half an hour on one CPU core.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dynamicvit.demo.dense import DENSE_WEIGHTS, dense_model
from dynamicvit.demo.scenes import GRID, Scenes

FIRST_WINDOW = 5
"""Side of the first window in patches; a digit is about three patches tall."""


class Window(nn.Module):
    """A square window of patch tokens for each image, in place of timm's patch dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The class token and the window's tokens: ``(B, 1 + N, C)`` to ``(B, 1 + K, C)``."""
        if self.tokens is None:
            return x
        return x.gather(1, self.tokens[..., None].expand(-1, -1, x.shape[-1]))


def window_around(digit_patches: Tensor, side: int, draws: torch.Generator) -> Tensor | None:
    """A random window that contains as much of the digit as possible.

    Args:
        digit_patches: ``(B, N)`` bool.
        side: of the window, in patches.
        draws: generator of the position.

    Returns:
        Indices ``(B, 1 + K)`` of the class token and the window's patch tokens; None if the window
        is the whole scene.
    """
    if side >= GRID:
        return None
    patches = digit_patches.unflatten(1, (GRID, GRID)).int()
    corners = []
    for axis in (2, 1):  # rows, then columns that the digit covers
        covered = patches.amax(axis)  # (B, 12)
        first, last = covered.argmax(1), GRID - 1 - covered.flip(1).argmax(1)
        low = (last - side + 1).clamp(min=0)
        high = torch.maximum(first.clamp(max=GRID - side), low)
        corners.append(low + (torch.rand(len(low), generator=draws) * (high - low + 1)).long())
    steps = torch.arange(side)
    rows, columns = (corner[:, None] + steps for corner in corners)
    patch_tokens = 1 + (rows[:, :, None] * GRID + columns[:, None, :]).flatten(1)
    return torch.cat([torch.zeros(len(patch_tokens), 1, dtype=torch.long), patch_tokens], 1)


@torch.inference_mode()
def top1(model: nn.Module, scenes: Scenes, count: int, batch_size: int = 100) -> float:
    """Top-1 in percent on the first ``count`` scenes."""
    model.eval()
    right = 0
    for start in range(0, count, batch_size):
        images, labels, _ = scenes.batch(range(start, min(start + batch_size, count)))
        right += int((model(images).argmax(1) == labels).sum())
    return 100 * right / count


def curriculum(progress: float) -> tuple[float, int]:
    """Clutter and side of the window at ``progress`` in [0, 1]."""

    def growth(start: float, end: float) -> float:
        return min(max((progress - start) / (end - start), 0), 1)

    # The last part adapts from windows to the whole scene.
    side = GRID if progress >= 0.95 else FIRST_WINDOW + round(3 * growth(0.22, 0.5))
    return growth(0.13, 0.48), side


def learning_rate(progress: float, peak: float, warmup: float = 0.04) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if progress < warmup:
        return peak * progress / warmup
    fall = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def train(args: argparse.Namespace) -> nn.Module:
    """Train, with scores at intervals; returns the model with averaged weights."""
    torch.manual_seed(args.seed)
    model = dense_model()
    window = model.patch_drop = Window()
    ema = ModelEmaV3(model, decay=0.998, use_warmup=True)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98)
    )
    score = Scenes("score", seed=args.seed)
    steps = args.images // args.batch_size
    for step in range(steps):
        done = step / steps
        clutter, side = curriculum(done)
        scenes = Scenes("train", seed=args.seed, clutter=clutter)
        seen = step * args.batch_size
        images, labels, digit_patches = scenes.batch(range(seen, seen + args.batch_size))
        draws = torch.Generator().manual_seed(args.seed * steps + step)
        window.tokens = window_around(digit_patches, side, draws)

        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, args.lr)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=0.05)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step + 1)

        if (step + 1) % args.log_every == 0:
            window.tokens = None
            print(
                f"{(step + 1) * args.batch_size:7d} images  window {side:2d}  "
                f"clutter {clutter:.2f}  top-1 {top1(ema.module, score, 400):5.1f}"
            )
    ema.module.patch_drop = nn.Identity()
    return ema.module


def save(model: nn.Module, args: argparse.Namespace) -> None:
    """Write the weights in half precision, with the command that reproduces them."""
    model = model.half()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    accuracy = top1(model.float(), Scenes("score", seed=args.seed), args.score_scenes)
    facts = {
        "command": f"python -m dynamicvit.demo.train_dense --images {args.images} "
        f"--batch-size {args.batch_size} --lr {args.lr} --seed {args.seed}",
        "seed": str(args.seed),
        "images_seen": str(args.images // args.batch_size * args.batch_size),
        "top1": f"{accuracy:.2f}",
        "score_scenes": str(args.score_scenes),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out, metadata=facts)
    print(f"top-1 {accuracy:.2f} on {args.score_scenes} scenes; wrote {args.out}")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train and save."""
    parser = argparse.ArgumentParser(prog="python -m dynamicvit.demo.train_dense")
    parser.add_argument("--out", type=Path, default=DENSE_WEIGHTS, help="safetensors to write")
    parser.add_argument("--images", type=int, default=230_000, help="scenes to train on")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=300, help="steps between two scores")
    parser.add_argument("--score-scenes", type=int, default=2_000, help="scenes of the last score")
    args = parser.parse_args(arguments)
    save(train(args), args)


if __name__ == "__main__":
    main()
