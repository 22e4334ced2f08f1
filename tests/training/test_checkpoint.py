"""Checkpoints: whole or not at all, the last two and the best, and only of the same run."""

import json
import logging
import resource
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, InputError, sparsify
from dynamicvit.data import ImageData, Loader
from dynamicvit.training import Progress, checkpoint, checkpoint_file, fit, loop
from dynamicvit.training.checkpoint import BEST, DAMAGED, NEWEST, PREVIOUS
from dynamicvit.training.checkpoint_file import load_checkpoint, write_checkpoint
from dynamicvit.training.output import check_output
from families import DEIT
from memory import BATCH, Memory, shallow, small
from pictures import write_image

Stopped = Callable[[Path, int], object]


@pytest.fixture(autouse=True)
def save_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)


def steps_of(folder: Path) -> dict[str, int]:
    """After which step each checkpoint was written."""
    files = sorted(folder.glob("checkpoint*"))
    return {file.name: load_checkpoint(file)["counters"]["step"] for file in files}


@pytest.fixture(scope="module")
def stopped_after(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Puts a run that was killed after so many steps into a folder."""

    @cache
    def stopped(step: int) -> Path:
        def crash(progress: Progress) -> None:
            if progress.step == step - 1:
                raise MemoryError

        folder = tmp_path_factory.mktemp("stopped")
        with pytest.raises(MemoryError):
            fit(shallow(), Memory(), small(), folder, on_step=crash)
        return folder

    return lambda folder, step: shutil.copytree(stopped(step), folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> DynamicViT:
    """What a run that nothing stopped gives."""
    model = shallow()
    fit(model, Memory(), small(), tmp_path_factory.mktemp("whole"))
    return model


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # other names of the file keep what they have
    path.write_bytes(content)


def test_the_last_two_and_the_best_stay(tmp_path: Path) -> None:
    best = []
    for seed in (0, 3):
        losses: list[float] = []
        fit(
            shallow(seed=seed),
            Memory(),
            small("learning_rate=1e-9"),
            tmp_path / str(seed),
            on_step=lambda progress, losses=losses: losses.append(progress.losses["total"]),
        )
        best.append(losses.index(min(losses)) + 1)
        # The run ends with a save of its own.
        assert steps_of(tmp_path / str(seed)) == {NEWEST: 6, PREVIOUS: 6, BEST: best[-1]}
    assert len({*best}) > 1, best  # or the test could not tell


def test_a_crashed_run_goes_on_from_its_last_save(stopped_after: Stopped, tmp_path: Path) -> None:
    stopped_after(tmp_path, 4)
    assert steps_of(tmp_path) | {BEST: 0} == {NEWEST: 4, PREVIOUS: 3, BEST: 0}
    with open(tmp_path / "log.jsonl", "a") as log:  # steps after the last save, one half written
        log.write('{}\n{"st')
    report = fit(shallow(), Memory(), small(), tmp_path, resume=True)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(6))
    assert report.steps == 6


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_newest_is_reported_and_the_one_before_used(
    harm: str,
    whole: DynamicViT,
    stopped_after: Stopped,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "damaged"
    stopped_after(folder, 4)
    newest = folder / NEWEST
    if harm == "flip":
        flip_a_bit(newest)
    else:
        newest.write_bytes(newest.read_bytes()[: 500 if harm == "cut" else 0])
    with caplog.at_level(logging.WARNING):
        resumed = shallow()
        fit(resumed, Memory(), small(), folder, resume=True)
    (said,) = caplog.messages
    assert f"checkpoint {newest} is damaged" in said
    assert f"going on from {folder / PREVIOUS}" in said
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert (folder / DAMAGED).exists()
    assert steps_of_readable(folder) == {NEWEST: 6, PREVIOUS: 6}


def steps_of_readable(folder: Path) -> dict[str, int]:
    return {name: load_checkpoint(folder / name)["counters"]["step"] for name in (NEWEST, PREVIOUS)}


def test_the_one_before_is_safe_until_there_is_another(
    stopped_after: Stopped, tmp_path: Path
) -> None:
    """Or a second crash, right after the damaged one was found, would leave none."""
    stopped_after(tmp_path, 4)
    flip_a_bit(tmp_path / NEWEST)
    found: list[tuple[dict[str, Any], Path]] = []
    for _ in range(2):
        checkpoint.restore_newest(tmp_path, lambda *each: found.append(each))
    (state, path) = found[1]
    assert (state["counters"]["step"], path.name) == (3, PREVIOUS)
    state["counters"]["step"] = 9
    checkpoint.keep_checkpoint(state, tmp_path)
    assert steps_of_readable(tmp_path) == {NEWEST: 9, PREVIOUS: 3}


def test_two_damaged_ones_are_named(stopped_after: Stopped, tmp_path: Path) -> None:
    stopped_after(tmp_path, 2)
    flip_a_bit(tmp_path / NEWEST)
    flip_a_bit(tmp_path / PREVIOUS)
    with pytest.raises(InputError, match=rf"{PREVIOUS} is damaged"):
        fit(shallow(), Memory(), small(), tmp_path, resume=True)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_whole(
    whole: DynamicViT, tmp_path: Path
) -> None:
    model = shallow()
    folder = tmp_path / "full"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        if progress.step == 2:
            half = (folder / NEWEST).stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (half, before[1]))

    try:
        with pytest.raises(InputError) as error:
            fit(model, Memory(), small(), folder, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(error.value) == (
        f"{folder / NEWEST} can't be written (File too large); the last checkpoint is whole: "
        "make room, then the same command resumes"
    )
    assert steps_of(folder) | {BEST: 0} == {NEWEST: 3, PREVIOUS: 2, BEST: 0}
    assert not list(folder.glob(".dynamicvit-*"))
    resumed = shallow()
    fit(resumed, Memory(), small(), folder, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_disk_that_is_full_at_the_log(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        size = (tmp_path / "log.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, before[1]))

    try:
        with pytest.raises(InputError, match=r"log.jsonl can't be written \(File too large\)"):
            fit(shallow(), Memory(), small(), tmp_path, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fit(shallow(), Memory(), small(), tmp_path, resume=True).steps == 6
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(6))


def test_going_on_with_another_recipe_is_refused_and_what_differs_is_named(
    stopped_after: Stopped, tmp_path: Path
) -> None:
    stopped_after(tmp_path, 2)
    other = small("weight_decay=0.1", "losses.token=1", "model=deit")
    with pytest.raises(InputError) as error:
        fit(shallow(), Memory(), other, tmp_path, resume=True)
    assert str(error.value).endswith(
        "another run: weight_decay 0.05 -> 0.1, losses.token 4.0 -> 1.0; take the old values, "
        "choose another folder or go on all the same with --force"
    )
    network = sparsify(shallow().backbone, method="random", stages=(1,))
    with pytest.raises(InputError) as error:  # no place for the prediction modules' weights
        fit(network, Memory(), small(), tmp_path, resume=True)
    assert str(error.value).endswith("; take the old values or choose another folder")
    with pytest.raises(InputError, match=r"steps in an epoch 3 -> 2 \(other data\?\)"):
        fit(shallow(), Memory(2), small(), tmp_path, resume=True)
    with pytest.raises(InputError, match="no checkpoint"):
        fit(shallow(), Memory(), small(), tmp_path / "empty", resume=True)


def test_other_images_of_the_same_number_are_told_apart(
    stopped_after: Stopped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped_after(tmp_path / "run", 2)  # of batches without names
    for gray, name in ((3, "one"), (30, "two")):
        for number in range(3 * BATCH):
            write_image(tmp_path / name / f"{number}.png", number, (gray, gray))

    def go_on(name: str, force: bool = False) -> int:
        data = ImageData(tmp_path / name, transform=lambda _: torch.zeros(3, *DEIT.size))
        loader, folder = Loader(data, BATCH, shuffle=True), tmp_path / "run"
        return fit(shallow(), loader, small(), folder, resume=True, force=force).steps

    assert go_on("one") == 6, "nothing is known of the images before"
    assert go_on("one") == 6
    with pytest.raises(InputError, match=r"names, sizes or labels of the images \w{8} -> \w{8}"):
        go_on("two")
    with caplog.at_level(logging.WARNING):
        assert go_on("two", force=True) == 6
    assert "in spite of names, sizes or labels of the images" in caplog.text


def test_force_goes_on_with_the_new_values(
    stopped_after: Stopped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped_after(tmp_path, 2)
    other = small("weight_decay=0.1", steps=8)
    with caplog.at_level(logging.WARNING):
        report = fit(shallow(), Memory(), other, tmp_path, resume=True, force=True)
    assert "in spite of images 24 -> 32, weight_decay 0.05 -> 0.1" in caplog.text
    assert report.steps == 8
    state = load_checkpoint(tmp_path / NEWEST)
    decays = {group["weight_decay"] for group in state["optimizer"]["param_groups"]}
    assert decays == {0.0, 0.1}
    assert "weight_decay: 0.1" in (tmp_path / "recipe.yaml").read_text()


def test_going_on_with_another_model_is_refused(stopped_after: Stopped, tmp_path: Path) -> None:
    stopped_after(tmp_path, 1)
    with pytest.raises(InputError, match=r"of another model.*missing|of another shape"):
        fit(shallow(depth=6), Memory(), small(), tmp_path, resume=True)


def test_another_version_is_named_and_no_older_one_taken(
    stopped_after: Stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(tmp_path, 2)
    monkeypatch.setattr(checkpoint_file, "VERSION", 2)
    with pytest.raises(InputError, match=rf"{NEWEST} is of version 1, this .* version 2"):
        fit(shallow(), Memory(), small(), tmp_path, resume=True)


def test_another_number_of_processes_is_said(
    stopped_after: Stopped, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped_after(tmp_path, 2)
    for name in (NEWEST, PREVIOUS):
        state = load_checkpoint(tmp_path / name)
        (tmp_path / name).unlink()  # a name more of the other
        write_checkpoint({**state, "processes": 8}, tmp_path / name)
    with caplog.at_level(logging.WARNING):
        fit(shallow(), Memory(), small(), tmp_path, resume=True)
    assert "written by 8 process(es), now there are 1" in caplog.text


def test_a_folder_whose_name_is_not_utf_8() -> None:
    with pytest.raises(InputError, match=r"run\\udcff"):
        check_output(Path("run\udcff"))


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / NEWEST).write_text("notes")
    with pytest.raises(InputError, match=rf"{NEWEST} is damaged or not one of ours"):
        load_checkpoint(tmp_path / NEWEST)
