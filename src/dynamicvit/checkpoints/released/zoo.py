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

LayoutName = Literal["DeiT", "LV-ViT", "ConvNeXt", "Swin"]

PROJECT_PAGE = "https://github.com/raoyongming/DynamicViT"
"""The authors' page, which links their files."""


@dataclass(frozen=True)
class Architecture:
    """A backbone of the paper's tables.

    Attributes:
        name: as in the tables.
        model: timm's name, or one that :mod:`dynamicvit.backbones.networks` adds.
        layout: the naming of its parameters.
        width: C; of ConvNeXt and Swin that of the third stage.
        depth: number of blocks, of all stages.
        num_heads: H; 0 for ConvNeXt, and for Swin, where each stage has its own.
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
        """timm's name for square images of this side in pixels; ``None`` without one."""
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

CONVNEXT_T = Architecture("ConvNeXt-T", "convnext_tiny", "ConvNeXt", 384, 18, 0)
CONVNEXT_S = Architecture("ConvNeXt-S", "convnext_small", "ConvNeXt", 384, 36, 0)
CONVNEXT_B = Architecture("ConvNeXt-B", "convnext_base", "ConvNeXt", 512, 36, 0)
SWIN_T = Architecture("Swin-T", "swin_tiny_patch4_window7_224", "Swin", 384, 12, 0)
SWIN_S = Architecture("Swin-S", "swin_small_patch4_window7_224", "Swin", 384, 24, 0)
SWIN_B = Architecture("Swin-B", "swin_base_patch4_window7_224", "Swin", 512, 24, 0)

VITS = (DEIT_TI, DEIT_256, DEIT_S, DEIT_B, LVVIT_T, LVVIT_S, LVVIT_M, LVVIT_L)
HIERARCHICAL = (CONVNEXT_T, CONVNEXT_S, CONVNEXT_B, SWIN_T, SWIN_S, SWIN_B)
ARCHITECTURES = (*VITS, *HIERARCHICAL)


@dataclass(frozen=True)
class Release:
    """One released checkpoint.

    Attributes:
        architecture: of its backbone.
        keep_ratio: ρ, with which it was trained.
        top1: published accuracy on ImageNet-1k, in percent.
        gmacs: published cost of an image.
        url: of the file.
        mirror: a page with the same file, for a browser.
    """

    architecture: Architecture
    keep_ratio: float
    top1: float
    gmacs: float
    url: str
    mirror: str

    @property
    def name(self) -> str:
        """As a user types it: ``lvvit-s-0.7``."""
        return f"{self.architecture.name.lower().replace('lv-vit', 'lvvit')}-{self.keep_ratio}"

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return f"dynamicvit-{self.name}.pth"


#: Architecture, ρ, top-1, GMACs, and the names of the file in the authors' two folders.
_ROWS = (
    (DEIT_256, 0.7, 76.53, 1.3, "b0e1ff6af1004039855e", "1fpdTNRZtGOW25UwOadj1iUdjqmu88WkO"),
    (DEIT_S, 0.7, 79.32, 2.9, "698896dfbcea430b9591", "1H5kHHagdqo4emk9CgjfA7DA62XJr8Yc1"),
    (DEIT_B, 0.7, 81.43, 11.4, "660f27ddb6b945a797a8", "1J9PCPiOSHmzRiWw370GDYJPEZ8r4uU3M"),
    (LVVIT_S, 0.5, 81.97, 3.7, "635cb172312749e39cf2", "1kPe3MhtYHNdG7natrU20xcAqodO6-Z58"),
    (LVVIT_S, 0.7, 83.08, 4.6, "d732a3511dd64db598e1", "1dNloEsuEiTi592SdM_ELC36kOJ7aaF-3"),
    (LVVIT_M, 0.7, 83.82, 8.5, "b8d1efdfc41d4777903e", "1dNab1B5ZOTVNpnpO6H1TsXKFM8BAlA3I"),
    (CONVNEXT_T, 0.7, 81.59, 3.6, "95b2daf7593a42f48baa", "1Jdp5Xi5E3teBm6zfXqAE681XiszrwqCe"),
    (CONVNEXT_T, 0.9, 82.06, 3.9, "030c6b8268104c16a666", "1AHh4kQ_zecKhDzm4bvcZxdl0SoJA3K4Q"),
    (CONVNEXT_S, 0.7, 82.57, 5.8, "293972cc7d8c4adaac23", "155I0ixZzLFLn9xqZtQML5lXt0QWiQaak"),
    (CONVNEXT_S, 0.9, 83.12, 6.8, "64c4ed5ab02d45998bf6", "1xFvhSXua2w2m1tr3WFA_d8MH3wEGgRhN"),
    (CONVNEXT_B, 0.7, 83.45, 10.2, "1e3a861f272142c38bbc", "1epwmGKOEfqjU-WITgrB9VXTWhCu6pcgG"),
    (CONVNEXT_B, 0.9, 83.96, 11.9, "9b4c8df7b30d410bba75", "1lQLXnxETK6hpsx2Tcv3q1HtRjLI21epl"),
    (SWIN_T, 0.7, 80.91, 4.0, "6a3d0de592f04d77a2fa", "1BFlCvXedgttyj8n9smcNphE7NLOy99ig"),
    (SWIN_S, 0.7, 83.21, 6.9, "86b58132f354495590d0", "1gveNkt5aCzjb5CX_DaGq_XJRvvxruxmy"),
    (SWIN_B, 0.7, 83.43, 12.1, "ea260248adc040929970", "1sJctKZxdIH0zHwTekWmmCns_1AOeFzeN"),
)

RELEASES = {
    release.name: release
    for release in (
        Release(
            *row,
            url=f"https://cloud.tsinghua.edu.cn/f/{file}/?dl=1",
            mirror=f"https://drive.google.com/file/d/{mirror}/view",
        )
        for *row, file, mirror in _ROWS
    )
}
"""Every released checkpoint of the NeurIPS paper and of its journal version, by its name."""

#: The authors' own names for their files: dynamic-vit_384_r0.7.pth, dynamic-vit_lv-m_r0.7.pth.
_AUTHORS_NAME = re.compile(r"dynamic-vit_[\w-]+_r(0\.\d+)")


def is_release(name: object) -> bool:
    """Whether this is the name of a release and not of a file."""
    return isinstance(name, str) and name in RELEASES and not Path(name).exists()


def release_of(name: str) -> Release:
    """The release of this name.

    Raises:
        InputError: for an unknown name.
    """
    if name in RELEASES:
        return RELEASES[name]
    raise InputError(f"no released checkpoint {name!r}; one of {', '.join(RELEASES)}")


def keep_ratio_in(file_name: str) -> float | None:
    """ρ from the name of a file: the authors' names, and those in the cache."""
    for release in RELEASES.values():
        if file_name == release.file_name:
            return release.keep_ratio
    match = _AUTHORS_NAME.match(file_name)
    return float(match[1]) if match else None
