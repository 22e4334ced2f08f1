"""However a batch is split over processes and passes: the losses are those of one pass over it."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import launched
from dynamicvit import DynamicViT, InputError
from dynamicvit.training import fit
from dynamicvit.utils.distributed import launched_precision, launched_processes
from dynamicvit.utils.signals import Interrupted
from families import DEIT
from memory import Memory, small
from processes import run_two

NAMES = [name for name, _, _ in launched.RUNS]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_follows(folder: Path, alone: Path) -> None:
    ours, theirs = log_of(folder), log_of(alone)
    assert len(ours) == launched.STEPS
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine["losses"] == pytest.approx(expected["losses"], abs=1e-4, rel=0)
        assert mine["held_out"] == expected["held_out"]
        assert mine["kept"] == pytest.approx(expected["kept"], abs=1e-6)
        assert mine["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run in one process and one pass."""
    folder = tmp_path_factory.mktemp("alone")
    for name in NAMES:
        launched.run(name, folder / name)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run in two processes that gloo joins, as under torchrun."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(Interrupted):
        launched.run(NAMES[0], folder / launched.RESUMED, stop=launched.STEPS // 2)
    run_two(launched.all_of_it, folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_follow_one(name: str, alone: Path, together: Path) -> None:
    assert_follows(together / name, alone / name)


def test_two_processes_go_on_where_one_was_stopped(alone: Path, together: Path) -> None:
    assert_follows(together / launched.RESUMED, alone / NAMES[0])
    assert "written by 1 process(es), now there are 2" in (together / "said0").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_two_passes_follow_one(name: str, alone: Path, tmp_path: Path) -> None:
    launched.run(name, tmp_path, accumulate=2)
    assert_follows(tmp_path, alone / name)


def test_each_image_is_counted_once_by_all(together: Path, tmp_path: Path) -> None:
    launched.count(tmp_path)
    expected = json.loads((tmp_path / "result0.json").read_text())
    assert (expected["images"], len(expected["skipped"])) == (8, 3)
    for rank in range(2):
        result = json.loads((together / f"result{rank}.json").read_text())
        assert result["divergence"] == pytest.approx(expected["divergence"])  # in another order
        own = {"seconds": 0, "divergence": 0}
        assert result | own == expected | own


def test_torch_shards_the_objective_in_a_loop_of_ones_own(together: Path, tmp_path: Path) -> None:
    launched.shard(tmp_path)
    expected = json.loads((tmp_path / "sharded0.json").read_text())
    for rank in range(2):
        totals = json.loads((together / f"sharded{rank}.json").read_text())
        assert totals == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_what_the_launcher_asks_in_vain_is_refused(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match="is not supported"):
        launched_processes("cpu")


@pytest.mark.usefixtures("native_bf16")
def test_fp16_on_a_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        fit(DEIT.sparse(), Memory(), small(), tmp_path / "out", precision=torch.float16)
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        launched_precision(None, "cpu")
    assert launched_precision(torch.bfloat16, "cpu") is torch.bfloat16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert launched_precision(None, "cpu") is torch.bfloat16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(InputError, match="'fp8'"):
        launched_precision(None, "cuda")


def test_accumulating_takes_at_least_one_pass(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 1 pass, got 0"):
        fit(DEIT.sparse(), Memory(), small(), tmp_path, accumulate=0)


# The compiler's own look at tensors between graphs, which it hides unless warnings are errors.
@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step_follows_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, compiler, paths = small(steps=2), torch.compile, []

    def compile(path: Callable[..., Any]) -> Callable[..., Any]:
        paths.append(path.__name__)
        return compiler(path, backend="eager")  # needs no C compiler

    monkeypatch.setattr(torch, "compile", compile)
    shallow = {"depth": 2, "stages": (1,)}  # what is traced takes the time
    model = DEIT.sparse(**shallow)
    fit(model, Memory(), recipe, tmp_path / "compiled", compiled=True)
    assert sorted(paths) == 2 * ["forward_dense"] + 2 * ["forward_masked"]
    assert model.forward_masked == types.MethodType(DynamicViT.forward_masked, model)
    fit(DEIT.sparse(**shallow), Memory(), recipe, tmp_path / "plain")
    ours, theirs = log_of(tmp_path / "compiled"), log_of(tmp_path / "plain")
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine["losses"] == pytest.approx(expected["losses"], abs=1e-4, rel=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_on_a_gpu(precision: torch.dtype, tmp_path: Path) -> None:
    recipe = small(steps=12)
    report = fit(DEIT.sparse(), Memory(), recipe, tmp_path, device="cuda", precision=precision)
    assert report.bad_steps < 6  # a scale that is too high at first costs fp16 some
    assert all(math.isfinite(line["losses"]["total"]) for line in log_of(tmp_path))
