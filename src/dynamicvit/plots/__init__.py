"""Pictures and plots; matplotlib is imported where one is drawn."""

from dynamicvit.plots.page import draw
from dynamicvit.plots.style import save
from dynamicvit.plots.visualization import visualize
from dynamicvit.plots.visualized import Visualization

__all__ = ["Visualization", "draw", "save", "visualize"]
