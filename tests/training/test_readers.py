"""A process that reads images dies: training has saved and goes on, evaluation is one line."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dynamicvit import DynamicViT, InputError
from dynamicvit.data import ImageData, Loader, ReaderError
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.training import fit
from dynamicvit.training.checkpoint import NEWEST
from dynamicvit.training.checkpoint_file import load_checkpoint
from dynamicvit.training.held_out import HeldOut
from families import DEIT
from memory import BATCH, shallow, small
from pictures import WORKERS, write_image
from processes import FORKS, fork_readers

pytestmark = WORKERS

Transform = Callable[[Image.Image], torch.Tensor]


def pixels(image: Image.Image) -> torch.Tensor:
    value = image.getpixel((0, 0))[0] / 255  # type: ignore[index]
    return torch.full((3, *DEIT.size), value)


def deadly(gray: int, how: Callable[[], object]) -> Transform:
    """What one image's reader dies of."""

    def transform(image: Image.Image) -> torch.Tensor:
        if torch.utils.data.get_worker_info() and image.getpixel((0, 0)) == (gray,) * 3:
            how()
        return pixels(image)

    return transform


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def starved() -> None:
    raise MemoryError


def disconnected() -> None:
    raise ConnectionResetError


def no_shared_memory() -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(6 * BATCH):
        write_image(folder / f"{number:02d}.png", number)
    return folder


def loader(images: Path, transform: Transform, workers: int = 2) -> Loader:
    return Loader(ImageData(images, transform=transform), BATCH, num_workers=workers)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> DynamicViT:
    model = shallow()
    fit(model, loader(images, pixels, 0), small(), tmp_path_factory.mktemp("whole"))
    return model


@pytest.mark.parametrize("how", [killed, starved, no_shared_memory])
def test_training_is_saved_and_goes_on_to_the_same_bits(
    how: Callable[[], None], images: Path, whole: DynamicViT, tmp_path: Path
) -> None:
    model, folder = shallow(), tmp_path / "run"
    with pytest.raises(ReaderError) as error:
        fit(model, loader(images, deadly(5 * BATCH, how)), small(), folder)  # read after a step
    assert "a process that reads images died (" in str(error.value)
    assert f"{folder} is saved, the same command resumes" in str(error.value)
    assert "\n" not in str(error.value)
    assert 1 <= load_checkpoint(folder / NEWEST)["counters"]["step"] <= 5
    model = shallow()
    fit(model, loader(images, pixels), small(), folder, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_before_the_first_step_nothing_is_saved(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="has no checkpoint"):
        fit(shallow(), loader(images, deadly(0, killed)), small(), tmp_path)
    assert not (tmp_path / NEWEST).exists()


def test_while_held_out_images_are_read(images: Path, tmp_path: Path) -> None:
    held_out = HeldOut(loader(images, deadly(5, killed)), shallow())
    with pytest.raises(ReaderError, match="is saved, the same command resumes"):
        fit(shallow(), loader(images, pixels, 0), small(), tmp_path, held_out=held_out)
    assert load_checkpoint(tmp_path / NEWEST)["counters"]["step"] == 6


def test_evaluation_is_one_line(images: Path) -> None:
    with pytest.raises(ReaderError, match=r"died \(.*\): take fewer --workers"):
        evaluate(shallow(), loader(images, deadly(9, killed)), dense=shallow())


def test_a_death_is_told_once(images: Path) -> None:
    """A batch is lost with its reader before torch has seen its end, which is a signal."""
    with pytest.raises(ReaderError) as error:
        list(loader(images, deadly(9, disconnected)))
    assert error.tb is not None, "what holds the iterator"
    for reader in multiprocessing.active_children():
        reader.kill()
        os.waitid(os.P_PID, reader.pid or 0, os.WEXITED | os.WNOWAIT)  # torch looks before join()


def test_a_death_waits_for_the_next_batch(images: Path) -> None:
    """In the middle of a step or a save it would leave them half done."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader(images, deadly(4 * BATCH, killed)))
    next(batches)
    child = os.fork()  # and the end of any child is a signal
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ReaderError):
        list(batches)
    after = signal.getsignal(signal.SIGCHLD)
    assert after == before or getattr(after, "__module__", "").startswith("torch"), "not held back"


def test_a_folder_in_which_no_socket_fits(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every batch would be lost, and waited for without end."""
    folder = tmp_path / ("x" * 100)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(InputError, match=f"TMPDIR {folder} is longer"):
        list(loader(images, pixels))
    assert len(list(loader(images, pixels, 0))) == 6


left = []


def leave_readers(images: Path, said: Path) -> None:
    """End while processes wait to read more, as Python does: forks leave ``atexit`` out."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    warnings.simplefilter("ignore")
    fork_readers()
    left.append(iter(loader(images, pixels)))
    next(left[0])
    atexit._run_exitfuncs()


def test_a_process_ends_though_readers_are_waiting(images: Path, tmp_path: Path) -> None:
    """They ignore SIGTERM, by which multiprocessing ends what it then waits for."""
    process = FORKS.Process(target=leave_readers, args=(images, tmp_path / "said"))
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()
    assert (tmp_path / "said").read_text() == ""


def test_a_bug_in_a_transform_keeps_its_traceback(images: Path) -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug") as error:
        list(loader(images, deadly(0, broken)))
    assert not isinstance(error.value, ReaderError)
