"""Training: a recipe says what, the loop does it, checkpoints keep it."""

from dynamicvit.training.loop import TrainingReport, train
from dynamicvit.training.recipe import Recipe, load_recipe

__all__ = ["Recipe", "TrainingReport", "load_recipe", "train"]
