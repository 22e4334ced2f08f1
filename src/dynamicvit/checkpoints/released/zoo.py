"""The checkpoints that the paper's authors released, in one table, and their architectures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
from timm.models import get_pretrained_cfg, is_model

import dynamicvit.backbones.networks  # noqa: F401 (timm finds LV-ViT by name)
from dynamicvit.errors import InputError

LayoutName = Literal["DeiT", "LV-ViT"]

PROJECT_PAGE = "https://github.com/raoyongming/DynamicViT"
"""Where the authors link their files."""


@dataclass(frozen=True)
class Architecture:
    """A backbone of the paper's tables.

    Attributes:
        name: as in the tables.
        model: timm's name, that of a network of :mod:`dynamicvit.backbones.networks` included.
        layout: whose parameter names it has.
        width: C.
        depth: number of blocks.
        num_heads: H.
        residual_divisor: what each residual branch is divided by.
    """

    name: str
    model: str
    layout: LayoutName
    width: int
    depth: int
    num_heads: int
    residual_divisor: float = 1.0

    def timm_name(self, image_size: int) -> str | None:
        """timm's name of it for square images of this side in pixels; ``None`` without one."""
        tagged = timm.list_models(f"{self.model}.*", pretrained=True)
        resized = re.sub(r"_\d+$", f"_{image_size}", self.model)
        for name in (self.model, *tagged, resized):
            config = get_pretrained_cfg(name) if is_model(name.partition(".")[0]) else None
            if config is not None and config.input_size[-1] == image_size:
                return name
        return None


DEIT_TI = Architecture("DeiT-Ti", "deit_tiny_patch16_224", "DeiT", 192, 12, 3)
DEIT_256 = Architecture("DeiT-256", "deit_256_patch16_224", "DeiT", 256, 12, 4)
DEIT_S = Architecture("DeiT-S", "deit_small_patch16_224", "DeiT", 384, 12, 6)
DEIT_B = Architecture("DeiT-B", "deit_base_patch16_224", "DeiT", 768, 12, 12)
LVVIT_T = Architecture("LV-ViT-T", "lvvit_t", "LV-ViT", 240, 12, 4, 1.0)
LVVIT_S = Architecture("LV-ViT-S", "lvvit_s", "LV-ViT", 384, 16, 6, 2.0)
LVVIT_M = Architecture("LV-ViT-M", "lvvit_m", "LV-ViT", 512, 20, 8, 2.0)
LVVIT_L = Architecture("LV-ViT-L", "lvvit_l", "LV-ViT", 768, 24, 12, 3.0)

ARCHITECTURES = (DEIT_TI, DEIT_256, DEIT_S, DEIT_B, LVVIT_T, LVVIT_S, LVVIT_M, LVVIT_L)


@dataclass(frozen=True)
class Release:
    """One released checkpoint.

    Attributes:
        name: as a user types it.
        architecture: what it is of.
        keep_ratio: ρ, with which it was trained.
        top1: published accuracy on ImageNet-1k, in percent.
        gmacs: published cost of an image, prediction modules left out.
        url: where the file is.
        mirror: a page from which a browser gets the same file.
    """

    name: str
    architecture: Architecture
    keep_ratio: float
    top1: float
    gmacs: float
    url: str
    mirror: str

    @property
    def file_name(self) -> str:
        """What the file is called in the cache."""
        return f"dynamicvit-{self.name}.pth"


_ALL = (
    Release(
        "deit-256-0.7",
        DEIT_256,
        keep_ratio=0.7,
        top1=76.53,
        gmacs=1.3,
        url="https://cloud.tsinghua.edu.cn/f/b0e1ff6af1004039855e/?dl=1",
        mirror="https://drive.google.com/file/d/1fpdTNRZtGOW25UwOadj1iUdjqmu88WkO/view",
    ),
    Release(
        "deit-s-0.7",
        DEIT_S,
        keep_ratio=0.7,
        top1=79.32,
        gmacs=2.9,
        url="https://cloud.tsinghua.edu.cn/f/698896dfbcea430b9591/?dl=1",
        mirror="https://drive.google.com/file/d/1H5kHHagdqo4emk9CgjfA7DA62XJr8Yc1/view",
    ),
    Release(
        "deit-b-0.7",
        DEIT_B,
        keep_ratio=0.7,
        top1=81.43,
        gmacs=11.4,
        url="https://cloud.tsinghua.edu.cn/f/660f27ddb6b945a797a8/?dl=1",
        mirror="https://drive.google.com/file/d/1J9PCPiOSHmzRiWw370GDYJPEZ8r4uU3M/view",
    ),
    Release(
        "lvvit-s-0.5",
        LVVIT_S,
        keep_ratio=0.5,
        top1=81.97,
        gmacs=3.7,
        url="https://cloud.tsinghua.edu.cn/f/635cb172312749e39cf2/?dl=1",
        mirror="https://drive.google.com/file/d/1kPe3MhtYHNdG7natrU20xcAqodO6-Z58/view",
    ),
    Release(
        "lvvit-s-0.7",
        LVVIT_S,
        keep_ratio=0.7,
        top1=83.08,
        gmacs=4.6,
        url="https://cloud.tsinghua.edu.cn/f/d732a3511dd64db598e1/?dl=1",
        mirror="https://drive.google.com/file/d/1dNloEsuEiTi592SdM_ELC36kOJ7aaF-3/view",
    ),
    Release(
        "lvvit-m-0.7",
        LVVIT_M,
        keep_ratio=0.7,
        top1=83.82,
        gmacs=8.5,
        url="https://cloud.tsinghua.edu.cn/f/b8d1efdfc41d4777903e/?dl=1",
        mirror="https://drive.google.com/file/d/1dNab1B5ZOTVNpnpO6H1TsXKFM8BAlA3I/view",
    ),
)

RELEASES = {release.name: release for release in _ALL}
"""Every released checkpoint of the NeurIPS paper, by its name."""

#: The authors' own names for their files: dynamic-vit_384_r0.7.pth, dynamic-vit_lv-m_r0.7.pth.
_AUTHORS_NAME = re.compile(r"dynamic-vit_[\w-]+_r(0\.\d+)")


def is_release(name: object) -> bool:
    """Whether this is the name of a release, and no file has it."""
    return isinstance(name, str) and name in RELEASES and not Path(name).exists()


def release_of(name: str) -> Release:
    """The release of this name.

    Raises:
        InputError: listing the names there are.
    """
    if name in RELEASES:
        return RELEASES[name]
    raise InputError(f"no released checkpoint {name!r}; there are {', '.join(RELEASES)}")


def keep_ratio_in(file_name: str) -> float | None:
    """ρ from the name of a file: the authors' names, and those in the cache."""
    for release in RELEASES.values():
        if file_name == release.file_name:
            return release.keep_ratio
    match = _AUTHORS_NAME.match(file_name)
    return float(match[1]) if match else None


def architecture_of(layout: LayoutName, width: int, depth: int) -> Architecture | None:
    """The backbone of these shapes; ``None`` where the tables have none."""
    for architecture in ARCHITECTURES:
        if (architecture.layout, architecture.width, architecture.depth) == (layout, width, depth):
            return architecture
    return None
