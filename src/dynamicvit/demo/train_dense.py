"""Train the demo's dense model: ``python -m dynamicvit.demo.train_dense --out FILE``.

Trained on cluttered scenes from the start, the model stays at chance for a long time: it has to
find the digit before it can learn what digits look like. So it begins with clean scenes seen
through a small window of patches around the digit, and both the clutter and the window grow until
the whole scene is there. A small window is also several times faster.

It needs one core and no accelerator. Stopped, the same command goes on from its last checkpoint,
which lies beside FILE until FILE is written.
"""

from __future__ import annotations

import argparse
import math
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dynamicvit.demo.dense import DENSE_WEIGHTS, dense_model
from dynamicvit.demo.scenes import GRID, Scenes
from dynamicvit.errors import InputError

FIRST_WINDOW = 5
"""Side of the first window, in patches: a digit is about three patches tall."""
ARGUMENTS = ("images", "batch_size", "lr", "seed")
"""What decides the weights, and is stored with them."""


class Window(nn.Module):
    """A square window of patch tokens for each image, in the place of timm's patch dropout.

    The position embedding is already added, so the model learns the place of every patch from
    windows that lie anywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Keep the class token and the window's tokens, (B, 1 + N, C) to (B, 1 + K, C)."""
        if self.tokens is None:
            return x
        return x.gather(1, self.tokens[..., None].expand(-1, -1, x.shape[-1]))


def window_around(digit_patches: Tensor, side: int, draws: torch.Generator) -> Tensor | None:
    """Place a random window that holds as much of the digit as it can.

    Args:
        digit_patches: Which patches the digit covers, (B, N).
        side: Side of the window in patches.
        draws: Where the windows' places are drawn from.

    Returns:
        Indices of the class token and the window's patch tokens, (B, 1 + K), or None when the
        window is the whole scene.
    """
    if side >= GRID:
        return None
    patches = digit_patches.unflatten(1, (GRID, GRID)).int()
    corners = []
    for axis in (2, 1):  # Rows, then columns: what the digit covers when the other is summed up.
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
    """Share of the first ``count`` scenes that the model reads right, in percent."""
    model.eval()
    right = 0
    for start in range(0, count, batch_size):
        images, labels, _ = scenes.batch(start, min(batch_size, count - start))
        right += int((model(images).argmax(1) == labels).sum())
    return 100 * right / count


def curriculum(progress: float) -> tuple[float, int]:
    """The clutter and the window's side at a point of the training, ``progress`` in [0, 1]."""

    def growth(start: float, end: float) -> float:
        return min(max((progress - start) / (end - start), 0), 1)

    clutter = growth(0.13, 0.48)
    # Most is learned through windows; the last part only has to get used to the whole scene.
    side = GRID if progress >= 0.95 else FIRST_WINDOW + round(3 * growth(0.22, 0.5))
    return clutter, side


def learning_rate(progress: float, peak: float, warmup: float = 0.04) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if progress < warmup:
        return peak * progress / warmup
    fall = (progress - warmup) / (1 - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall)))


def train(args: argparse.Namespace) -> None:
    """Train, checkpoint, score and write the weights.

    Raises:
        InputError: if the checkpoint to go on from was made with other arguments.
    """
    torch.manual_seed(args.seed)
    console = Console()
    model = dense_model()
    window = model.patch_drop = Window()
    # The average leaves a long memory only once there is something worth remembering.
    ema = ModelEmaV3(model, decay=0.998, use_warmup=True)
    optimizer = create_optimizer_v2(
        model, "adamw", lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98)
    )
    checkpoint = args.out.with_suffix(".checkpoint.pt")
    arguments = {name: getattr(args, name) for name in ARGUMENTS}
    steps, step = args.images // args.batch_size, 0
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        _check_same(state.get("arguments"), arguments, checkpoint)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        console.print(f"going on from step {step} of {steps}")

    score = Scenes("score", seed=args.seed)
    average = float("nan")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=steps, completed=step)
        while step < steps:
            done = step / steps
            clutter, side = curriculum(done)
            scenes = Scenes("train", seed=args.seed, clutter=clutter)
            images, labels, digit_patches = scenes.batch(step * args.batch_size, args.batch_size)
            # Drawn from the step alone, so that a resumed run sees the same windows.
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
            step += 1
            ema.update(model, step)
            right = 100 * (logits.argmax(1) == labels).float().mean().item()
            average = right if math.isnan(average) else average + 0.02 * (right - average)
            progress.update(bar, completed=step)

            if step % args.log_every == 0 or step == steps:
                window.tokens = None
                seen = step * args.batch_size
                full = top1(ema.module, score, 400)
                console.print(
                    f"{seen:7d} images  window {side:2d}  clutter {clutter:.2f}  "
                    f"top-1: train {average:5.1f}  score {full:5.1f}"
                )
                state = {
                    "model": model.state_dict(),
                    "ema": ema.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "arguments": arguments,
                }
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)

    save(ema.module, args, steps * args.batch_size, console)
    checkpoint.unlink()


def _check_same(stored: object, arguments: dict[str, Any], checkpoint: Path) -> None:
    """Refuse to go on with other arguments: the command stored with the weights would be false."""
    if stored != arguments:
        raise InputError(
            f"{checkpoint} was made with {stored}, not {arguments}: go on with those, "
            "or delete it to start anew"
        )


def save(model: VisionTransformer, args: argparse.Namespace, images: int, console: Console) -> None:
    """Write the weights in half precision, with what one needs to make them again."""
    model = deepcopy(model).half()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    accuracy = top1(model.float(), Scenes("score", seed=args.seed), args.score_scenes)
    facts = {
        "command": f"python -m dynamicvit.demo.train_dense --images {args.images} "
        f"--batch-size {args.batch_size} --lr {args.lr} --seed {args.seed}",
        "seed": str(args.seed),
        "images_seen": str(images),
        "top1": f"{accuracy:.2f}",
        "score_scenes": str(args.score_scenes),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out, metadata=facts)
    console.print(f"top-1 {accuracy:.2f} on {args.score_scenes} scenes; wrote {args.out}")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m dynamicvit.demo.train_dense")
    parser.add_argument("--out", type=Path, default=DENSE_WEIGHTS, help="safetensors to write")
    parser.add_argument("--images", type=int, default=230_000, help="scenes to train on")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=300, help="steps between two scores")
    parser.add_argument("--score-scenes", type=int, default=2_000, help="scenes of the last score")
    try:
        train(parser.parse_args())
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
