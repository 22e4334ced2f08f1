"""Which state dict a file holds, what fits and what does not, and other libraries' words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dynamicvit import InputError, load, load_dense, sparsify
from dynamicvit.utils.weights import load_exactly, open_weights, weights_in
from dynamicvit.utils.words import first_line
from families import DEIT


def state(value: float) -> dict[str, Tensor]:
    return {"a.weight": torch.full((2,), value), "a.bias": torch.full((1,), value)}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


PLAIN, EMA, TEACHER = 1.0, 2.0, 3.0


@pytest.mark.parametrize(
    ("checkpoint", "copy", "ema"),
    [
        (state(PLAIN), "", ""),
        ({"model": state(PLAIN), "epoch": 3}, "model", ""),
        ({"model": state(PLAIN), "model_ema": state(EMA)}, "model", "model_ema"),
        ({"model": state(PLAIN), "model_ema": None}, "model", ""),
        ({"model_ema": state(EMA), "model": state(PLAIN)}, "model", "model_ema"),
        (
            {"state_dict_ema": state(EMA), "state_dict": state(PLAIN)},
            "state_dict",
            "state_dict_ema",
        ),
        ({"model_ema": state(EMA)}, "model_ema", ""),
        (under("module_ema", state(EMA)) | under("module", state(PLAIN)), "", "module_ema"),
        (under("ema", state(EMA)), "ema", ""),
        (under("student", state(PLAIN)) | under("teacher", state(TEACHER)), "student", ""),
        (
            {"model": under("module.student", state(PLAIN)) | under("teacher", state(TEACHER))},
            "model.student",
            "",
        ),
        ({"model": under("student._orig_mod", state(PLAIN))}, "model.student", ""),
        ({"state_dict": under("module._orig_mod", state(PLAIN))}, "state_dict", ""),
        ({"state_dict": under("_orig_mod.module", state(PLAIN))}, "state_dict", ""),
    ],
)
def test_one_network_is_taken_and_named(checkpoint: dict, copy: str, ema: str) -> None:
    weights = weights_in(checkpoint, "the file")
    only_ema = copy in ("model_ema", "ema")
    assert {n: t[0].item() for n, t in weights.tensors.items()} == {
        "a.weight": EMA if only_ema else PLAIN,
        "a.bias": EMA if only_ema else PLAIN,
    }
    assert (weights.copy, weights.ema) == (copy, ema)
    if ema or only_ema:
        averaged = weights_in(checkpoint, "the file", ema=True)
        assert averaged.tensors["a.weight"][0] == EMA
        assert (averaged.copy, averaged.ema) == (ema or copy, "")
    else:
        with pytest.raises(InputError, match=r"the file: .*model_ema"):
            weights_in(checkpoint, "the file", ema=True)


@pytest.mark.parametrize("average", [AveragedModel, ModelEmaV3])
def test_what_averages_models_adds_to_their_names_goes(average: type) -> None:
    network = nn.Linear(2, 1)
    assert weights_in(average(network).state_dict(), "").tensors.keys() == {"weight", "bias"}


def test_a_file_keeps_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(under("module", state(PLAIN)), path, metadata={"rho": "0.7"})
    weights = open_weights(path)
    assert set(weights.tensors) == set(state(PLAIN))
    assert weights.metadata == {"rho": "0.7"}
    save_file(under("ema", state(EMA)) | state(PLAIN), path)
    assert open_weights(path).tensors["a.bias"] == PLAIN
    assert open_weights(path, ema=True).tensors["a.bias"] == EMA


def test_what_does_not_fit_changes_nothing() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {name: value + 1 for name, value in before.items()}
    del tensors["1.bias"]
    tensors["0.bias"] = torch.zeros(4)
    tensors |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(InputError) as error:
        load_exactly(network, tensors, "file: does not fit")
    for told in (
        "missing 1.bias",
        "unexpected extra.0, extra.1, extra.2 and 2 more",
        "0.bias (4,) instead of (3,)",
    ):
        assert told in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_integers_are_no_weights() -> None:
    network = nn.BatchNorm1d(2)
    tensors = network.state_dict()
    with pytest.raises(InputError, match=r"weight torch.int8 instead of torch.float"):
        load_exactly(network, tensors | {"weight": torch.ones(2, dtype=torch.int8)}, "file")
    half = {"weight": torch.full((2,), 0.5, dtype=torch.float16)}
    counted = {"num_batches_tracked": torch.tensor(3.0)}  # where a moving average counts them too
    load_exactly(network, tensors | half | counted, "file")
    assert network.weight.tolist() == [0.5, 0.5]
    assert network.num_batches_tracked == 3


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path}: is a folder"):
        open_weights(tmp_path)
    with pytest.raises(InputError, match="absent: no such file"):
        open_weights(tmp_path / "absent")


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("broken\nand more", "broken"),
        ("", "OSError"),
        ("No directory. Internal error. " + "very " * 50 + "corrupted. ", None),
        ("very " * 50, ("very " * 40).strip() + "…"),
        ("x" * 300, "x" * 200 + "…"),
    ],
)
def test_the_first_line_ends_with_a_sentence_or_says_that_it_goes_on(
    said: str, short: str | None
) -> None:
    assert first_line(OSError(said)) == (short or "No directory. Internal error.")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_that_are_not_finite_are_refused(value: float, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"broken.{ending}"
    whole = state(PLAIN) | {"c": torch.zeros(2, dtype=torch.long)}
    broken = whole | {"b": torch.tensor([1.0, value], dtype=torch.float64)}
    write = save_file if ending == "safetensors" else torch.save
    write(broken, file)
    with pytest.raises(InputError, match=r"broken.* in b;"):
        open_weights(file)
    write(whole, file)
    assert set(open_weights(file).tensors) == set(whole)


def test_of_two_networks_in_a_file_only_the_one_that_is_taken_must_be_finite() -> None:
    held = {"model": state(PLAIN), "ema": state(float("nan"))}
    assert weights_in(held, "the file").copy == "model"
    with pytest.raises(InputError, match=r"in a.weight, a.bias;"):
        weights_in(held, "the file", ema=True)


def test_of_a_run_the_weights_that_it_is_for_are_taken(tmp_path: Path) -> None:
    from dynamicvit.training import fit
    from memory import Memory, paper

    for name, recipe in (("plain", paper()), ("averaged", paper("ema=0.5"))):
        model = DEIT.sparse()
        fit(model, Memory(), recipe, tmp_path / name)
        weights = open_weights(tmp_path / name / "checkpoint.pt")
        for key, value in model.state_dict().items():
            assert torch.equal(weights.tensors[key], value), key


# ---------------------------------------------------------------- files of other tools


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: under("model", state),
        lambda state: under("net", state) | {"accuracy.total": torch.zeros(1)},
        lambda state: under("module.model", state),
        lambda state: under("student", state) | under("teacher", state),
        lambda state: under("_orig_mod.classifier", state),
        lambda state: under("backbone", state),
        lambda state: under("model.backbone", state),
        # Lightning's
        lambda state: {
            "epoch": 3,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": under("model", state) | under("teacher", state),
            "hyper_parameters": {"data": Path("/photos"), "lr": 1e-3},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7)}},
        },
    ],
    ids=["model", "net", "module", "student", "any", "backbone", "both", "Lightning"],
)
@torch.no_grad()
def test_dense_weights_as_other_tools_write_them(
    wrapped: Callable[[dict[str, Tensor]], dict[str, Any]], tmp_path: Path
) -> None:
    dense = timm.create_model("test_vit", num_classes=5)
    images = torch.randn(1, 3, 160, 160)
    torch.save(wrapped(dense.state_dict()), tmp_path / "last.ckpt")
    loaded = load_dense("test_vit", tmp_path / "last.ckpt")
    assert torch.equal(loaded(images), dense.eval()(images))


@torch.no_grad()
def test_a_wrapped_sparse_model(tmp_path: Path) -> None:
    sparse = sparsify(timm.create_model("test_vit", num_classes=5), 0.6, method="dynamicvit").eval()
    nn.init.normal_(sparse.predictors[0].mlp[4].weight)
    torch.save({"state_dict": under("model", sparse.state_dict())}, tmp_path / "last.ckpt")
    file = tmp_path / "last.ckpt"
    loaded = load("test_vit", checkpoint=file, keep_ratio=0.6, policy=sparse.policy)
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(loaded(images), sparse(images))


@torch.no_grad()
def test_weights_in_several_files(tmp_path: Path) -> None:
    dense = timm.create_model("test_vit", num_classes=5)
    save_torch_state_dict(dense.state_dict(), tmp_path, max_shard_size="500KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(load_dense("test_vit", index)(images), dense.eval()(images))
    with pytest.raises(InputError, match=f"one of several files; give {index}"):
        open_weights(shards[1])
    shards[1].rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"names {shards[1].name}, which is not beside it"):
        open_weights(index)
    save_file({"other": torch.zeros(1)}, shards[1])
    with pytest.raises(InputError, match=r"don't hold .* and \d+ more"):
        open_weights(index)
    index.write_text('{"weight_map": 3}')
    with pytest.raises(InputError, match="weight_map"):
        open_weights(index)
