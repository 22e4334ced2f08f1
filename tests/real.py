"""A real network and photographs for tests of what only real weights show; skips without them."""

from __future__ import annotations

import io
import tarfile

import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from shared import shared

#: timm's name, the file of weights, and how its images are normalized.
NETWORKS = {
    "deit": ("deit_tiny_patch16_224", "deit_tiny_patch16_224.safetensors", {}),
    "augreg": (
        "vit_tiny_patch16_224",
        "vit_tiny_patch16_224_augreg.safetensors",
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
}


class ImageNet:
    """A dense network and validation photographs of ImageNet, from all over the set.

    Attributes:
        backbone: in eval mode.
        images: ``(B, 3, 224, 224)``, normalized.
        dense: ``(B, classes)``, the network's own logits.
    """

    @torch.no_grad()
    def __init__(self, network: str, images: int) -> None:
        name, weights, given = NETWORKS[network]
        path, photographs = shared(f"data/{weights}"), shared("data/imagenet_sample_val.tar")
        self.backbone = timm.create_model(name).eval()
        self.backbone.load_state_dict(load_file(path))
        config = timm.data.resolve_data_config(given, model=self.backbone)
        prepare = timm.data.create_transform(**config)
        with tarfile.open(photographs) as archive:
            names = sorted(n for n in archive.getnames() if n.endswith((".jpg", ".JPEG")))
            chosen = names[:: len(names) // images][:images]
            read = [archive.extractfile(name).read() for name in chosen]
        pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in read]
        self.images = torch.stack([prepare(picture) for picture in pictures])
        self.dense = self.backbone(self.images)
