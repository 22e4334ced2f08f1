"""A task without data or downloads: read the one whole digit in a cluttered scene."""

from dynamicvit.demo.dense import dense_model, load_dense
from dynamicvit.demo.scenes import SceneBatch, Scenes

__all__ = ["SceneBatch", "Scenes", "dense_model", "load_dense"]
