"""What the tests of `dynamicvit train` share: a tiny model in a folder, images, the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from families import DEIT, NUM_CLASSES
from memory import shallow
from pictures import noise_folders

Main = Callable[..., int]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of seven classes in a folder."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    DEIT.sparse().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def two_blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two blocks, where the cost of each is measured."""
    folder = tmp_path_factory.mktemp("shallow") / "model"
    shallow().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven classes of two images."""
    return noise_folders(tmp_path / "images", classes=NUM_CLASSES, each=2)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Eight images without labels."""
    return noise_folders(tmp_path / "flat", classes=1, each=8) / "0"


@pytest.fixture
def main(command: Main) -> Main:
    """The command, with what every call has; gives the exit code."""
    return lambda *arguments: command(*arguments, "--workers", "0")
