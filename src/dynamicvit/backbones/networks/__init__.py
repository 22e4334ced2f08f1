"""Backbones of the paper that timm lacks; importing this lets ``timm.create_model`` find them."""

from dynamicvit.backbones.networks import deit, lvvit
from dynamicvit.backbones.networks.lvvit import LVViT

__all__ = ["LVViT", "deit", "lvvit"]
