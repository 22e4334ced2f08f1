"""Backbones of the paper that timm lacks; importing this lets ``timm.create_model`` find them."""

from dynamicvit.backbones import deit, lvvit
from dynamicvit.backbones.lvvit import LVViT

__all__ = ["LVViT", "deit", "lvvit"]
