"""What lies in folders, and what a training run leaves in its own."""

from __future__ import annotations

from pathlib import Path

#: The files of a run that has saved once.
WRITTEN = [
    "README.md",
    "checkpoint.best.pt",
    "checkpoint.pt",
    "config.json",
    "curves.png",
    "log.jsonl",
    "model.safetensors",
    "recipe.yaml",
    "report.json",
    "tensorboard",
]


def files_in(folder: Path) -> list[str]:
    """The names of a folder's files, in order."""
    return sorted(path.name for path in folder.iterdir())
