"""Training: a recipe says what, the loop does it, checkpoints keep it."""

from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.log import Progress
from dynamicvit.training.loop import fit
from dynamicvit.training.objective import TrainingObjective
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipes import load_recipe
from dynamicvit.training.run import Training, train
from dynamicvit.training.state import TrainingReport

__all__ = [
    "ExternalTeacher",
    "HeldOut",
    "Progress",
    "Recipe",
    "Training",
    "TrainingObjective",
    "TrainingReport",
    "fit",
    "load_recipe",
    "train",
]
