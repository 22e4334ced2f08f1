"""What the paper is compared with, as other ways to choose tokens."""

from dynamicvit.baselines.random import RandomScores

__all__ = ["RandomScores"]
