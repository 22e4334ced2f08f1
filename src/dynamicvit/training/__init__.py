"""Training: a recipe says what, the loop does it, checkpoints keep it."""

from dynamicvit.training.loop import train
from dynamicvit.training.recipe import Recipe, load_recipe
from dynamicvit.training.state import Progress, TrainingReport

__all__ = ["Progress", "Recipe", "TrainingReport", "load_recipe", "train"]
