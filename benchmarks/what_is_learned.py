"""What a fine-tuned model has learned, as figures: where it looks, at what, and in which pictures.

Three figures and a table, written to a folder; each part needs its own argument::

    python benchmarks/what_is_learned.py --model runs/deit_tiny --data VAL --scenes -o figures

- ``positions.png``: how often each position is kept at each stage, over the images of ``--data``.
- ``photographs.jpg``: what is kept of photographs that may be shown (scikit-learn's, and
  scikit-image's where it is installed).
- ``scenes.csv``, with ``--scenes``: on the demo's scenes, where the truth is known, the share of
  the digit's patches and of the others that each method keeps. Trains the demo's network, for
  some minutes.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dynamicvit import DynamicViT
from dynamicvit.checkpoints.loading import load
from dynamicvit.data import ImageData, Loader, eval_transform
from dynamicvit.demo import experiment
from dynamicvit.plots import save, style, visualize

#: scikit-image's photographs that come with it, without a download.
SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "hubble_deep_field")


#: Of the photographs: twice the width in which a page shows them is enough.
_DPI = 110


@torch.inference_mode()
def kept_by_position(model: DynamicViT, batches: Loader) -> tuple[list[Tensor], int]:
    """For each stage ``(rows, columns)``, the share of the images in which a patch is kept.

    Args:
        model: fine-tuned, in ``eval()``.
        batches: images to look at.

    Returns:
        The shares, and the number of images.
    """
    sums: list[Tensor] = []
    images, grid = 0, (0, 0)
    for batch in batches:
        output = model.forward_pruned(batch.images)
        counts = [kept.sum(dim=0).float() for kept in output.kept]
        sums = [a + b for a, b in zip(sums, counts, strict=True)] if sums else counts
        images, grid = images + len(batch), output.grid
    return [total.reshape(grid) / images for total in sums], images


def draw_positions(shares: list[Tensor], images: int) -> Figure:
    """A map for each stage, all on one scale."""
    figure = style.figure(2.3 * len(shares) + 0.9, 2.6)
    cells = figure.subplots(1, len(shares), squeeze=False)[0]
    for stage, (axes, share) in enumerate(zip(cells, shares, strict=True), 1):
        shown = axes.imshow(100 * share.numpy(), vmin=0, vmax=100, cmap=style.SCORES)
        style.dress(axes, f"stage {stage}: {100 * share.mean():.0f} % kept", grid=False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=list(cells), ticks=[0, 25, 50, 75, 100])
    style.dress(bar.ax, y=f"kept in % of {images:,} images", grid=False)
    bar.outline.set_visible(False)
    return figure


def photographs() -> list[Image.Image]:
    """Photographs that come with installed packages."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    try:
        from skimage import data  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("scikit-image is not installed: only scikit-learn's photographs are shown")
    else:
        pictures += [Image.fromarray(getattr(data, name)()) for name in SKIMAGE]
    return [picture.convert("RGB") for picture in pictures]


def scene_rows(size: experiment.Size, seed: int) -> list[dict[str, object]]:
    """The demo's network with each method: what is kept of the digit, and of the rest."""
    rows: list[dict[str, object]] = []
    for name in ("dynamicvit", "class-attention", "random"):
        torch.manual_seed(seed)
        model = experiment.sparse_model(name)
        experiment.fine_tune(model, size, seed)
        for ratio in experiment.RATIOS:
            model.keep_ratio = ratio
            top1, digit, background = experiment.score(model, size, seed)
            rows.append(
                {
                    "method": name,
                    "keep_ratio": ratio,
                    "top1": round(top1, 4),
                    "digit_kept": round(digit, 4),
                    "others_kept": round(background, 4),
                }
            )
            print(rows[-1])
    return rows


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a fine-tuned DynamicViT")
    parser.add_argument("--data", help="images for the map of positions")
    parser.add_argument("--scenes", action="store_true", help="the demo's scenes as well")
    parser.add_argument("--quick", action="store_true", help="fewer scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("figures"))
    options = parser.parse_args()
    if options.model is not None:
        model = load(options.model)
        path = options.output / "photographs.jpg"
        figure = visualize(model, photographs()).figure
        options.output.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=_DPI, pil_kwargs={"quality": 85})
        print(path)
        if options.data is not None:
            images = ImageData(options.data, labeled=False).with_transform(eval_transform(model))
            shares, count = kept_by_position(model, Loader(images, 32))
            page = draw_positions(shares, count)
            print(*save(page, options.output / "positions.png"))
    if options.scenes:
        size = experiment.SHORT if options.quick else experiment.LONG
        rows = scene_rows(size, options.seed)
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "scenes.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
