"""Importing this module registers every command on the app."""

from dynamicvit.cli import bench, demo, evaluate, train, visualize

__all__ = ["bench", "demo", "evaluate", "train", "visualize"]
