"""Saving and loading through huggingface_hub's mixin, in local folders."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelHubMixin
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dynamicvit import DynamicViT, InputError, Schedule, sparsify
from dynamicvit.core import hub
from dynamicvit.core.schedule import Policy
from dynamicvit.methods import RandomScores

SMALL = {"depth": 4, "embed_dim": 16, "num_heads": 2, "img_size": 32, "num_classes": 3}


#: Newer timm remembers every argument of create_model; from older ones only some can be read off.
needs_remembered_args = pytest.mark.skipif(
    not hasattr(timm.models, "get_model_args"), reason="this timm forgets arguments"
)


def small(
    name: str = "deit_tiny_patch16_224", policy: Policy = "removed", **kwargs: Any
) -> DynamicViT:
    torch.manual_seed(0)
    backbone = timm.create_model(name, **{**SMALL, **kwargs})
    return sparsify(backbone, keep_ratio=0.5, policy=policy, method="dynamicvit").eval()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def assert_same(loaded: DynamicViT, model: DynamicViT) -> None:
    """Same tensors, schedule and logits."""
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.schedule == model.schedule
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    size = model.backbone.patch_embed.img_size
    images = torch.randn(2, model.in_chans, *size)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.fixture
def downloads_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"asked for a download: {args} {kwargs}")

    monkeypatch.setattr("dynamicvit.core.hub.hf_hub_download", fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    small().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A folder for the test to break."""
    shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


# ------------------------------------------------------------------ round trips


def test_the_weights_can_be_read_by_whoever_reads_the_config(saved: Path) -> None:
    modes = {(saved / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


@pytest.mark.usefixtures("downloads_fail")
@pytest.mark.parametrize(
    "make",
    [
        lambda: small(),
        lambda: small(img_size=64, in_chans=1),
        pytest.param(
            lambda: small(img_size=(32, 64), patch_size=8, mlp_ratio=2, qkv_bias=False),
            marks=needs_remembered_args,
        ),
        lambda: small("deit_tiny_distilled_patch16_224"),
        lambda: small("deit3_small_patch16_224"),
        lambda: small("vit_tiny_patch16_224.augreg_in21k", drop_path_rate=0.3, drop_rate=0.1),
        lambda: small("vit_small_patch14_reg4_dinov2", img_size=56),
        lambda: small("vit_base_patch16_siglip_224", num_classes=0),
        lambda: small("eva02_tiny_patch14_224", img_size=56),
        lambda: small("beit_base_patch16_224", in_chans=1),
        lambda: small(policy="merged", img_size=64),
        lambda: timm.create_model(
            "dynamicvit_deit_tiny_patch16_224", **SMALL, stages=[0, 2], keep_ratio=0.8
        ).eval(),
    ],
)
def test_round_trip(tmp_path: Path, make: Callable[[], DynamicViT]) -> None:
    model = make()
    nn.init.normal_(model.predictors[0].mlp[4].weight)
    model.save_pretrained(tmp_path / "a")
    loaded = DynamicViT.from_pretrained(tmp_path / "a")
    assert_same(loaded, model)
    loaded.save_pretrained(tmp_path / "b")  # and once more: nothing is lost on the way
    assert config_of(tmp_path / "b") == config_of(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }


def test_ratios_of_their_own_and_the_model_card(tmp_path: Path) -> None:
    backbone = timm.create_model("deit_tiny_patch16_224", **SMALL)
    model = DynamicViT(backbone, Schedule((1, 3), (0.9, 0.2)))
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    assert loaded.schedule == model.schedule
    assert loaded.keep_ratio is None
    card = (tmp_path / "README.md").read_text()
    assert "library_name: dynamicvit" in card
    assert "https://arxiv.org/abs/2106.02034" in card


def test_what_becomes_of_dropped_tokens_is_kept(tmp_path: Path) -> None:
    """By a new budget too; folders from before there was a choice drop."""
    model = small(img_size=64)
    model.policy = "merged"
    model.keep_ratio = 0.3
    assert model.schedule.policy == model.policy == "merged"
    model.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    assert config["schedule"].pop("policy") == "merged"
    (tmp_path / "config.json").write_text(json.dumps(config))
    old, images = DynamicViT.from_pretrained(tmp_path), torch.randn(2, 3, 64, 64)
    assert old.schedule.policy == "removed"
    with torch.no_grad():
        assert not torch.equal(old(images), model(images))
    for wrong in ("fused", 3, None):
        config["schedule"]["policy"] = wrong
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=rf"config.json.*removed.*merged.*got {wrong!r}"):
            DynamicViT.from_pretrained(tmp_path)


def test_after_a_fresh_classifier(tmp_path: Path) -> None:
    model = small(num_classes=1000)
    model.backbone.pretrained_cfg["label_names"] = tuple(f"class {i}" for i in range(1000))
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    assert loaded.pretrained_cfg["label_names"][999] == "class 999"

    loaded.reset_classifier(7)
    loaded.save_pretrained(tmp_path)
    again = DynamicViT.from_pretrained(tmp_path)
    assert_same(again, loaded)
    assert again.num_classes == again.pretrained_cfg["num_classes"] == 7
    assert "label_names" not in again.pretrained_cfg  # those were other classes


@needs_remembered_args
def test_after_another_pool(tmp_path: Path) -> None:
    model = small()
    model.reset_classifier(5, "avg")  # timm leaves the norm where it was built
    model.save_pretrained(tmp_path)
    assert_same(DynamicViT.from_pretrained(tmp_path), model)


def test_the_data_config_is_the_models(tmp_path: Path) -> None:
    model = small("vit_base_patch16_siglip_224", img_size=384, embed_dim=8)
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    config = resolve_model_data_config(loaded)
    expected = resolve_model_data_config(model)
    assert config["mean"] == expected["mean"] == (0.5, 0.5, 0.5)
    assert config["interpolation"] == expected["interpolation"]
    assert config["crop_pct"] == expected["crop_pct"]
    assert config["input_size"] == (3, 384, 384)  # what the loaded model accepts
    assert not any(key in config_of(tmp_path)["pretrained_cfg"] for key in ("url", "hf_hub_id"))
    assert loaded(torch.randn(1, *config["input_size"])).shape == (1, 3)


def test_a_copy_saves_too(tmp_path: Path) -> None:
    model = small()
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    assert loaded.schedule == model.schedule
    torch.testing.assert_close(
        loaded.backbone.head.weight, model.backbone.head.weight, atol=1e-2, rtol=1e-2
    )


def test_push_to_hub_uploads_what_save_pretrained_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, bytes] = {}

    class Url:
        repo_id = "someone/a-model"

    def upload(self: HfApi, *, repo_id: str, folder_path: str | Path, **kwargs: object) -> str:
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **kwargs: Url)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model = small()
    assert isinstance(model, ModelHubMixin)
    assert model.push_to_hub("a-model") == "https://hub/someone/a-model"
    assert 'dynamicvit.load("someone/a-model")' in uploaded["README.md"].decode()
    for name, content in uploaded.items():
        (tmp_path / name).write_bytes(content)
    assert_same(DynamicViT.from_pretrained(tmp_path), model)

    uploaded.clear()
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, config={"mine": 1})
    assert json.loads(uploaded["config.json"]) == config_of(tmp_path)


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    asked = []

    def download(repo_id: str, filename: str, **kwargs: object) -> str:
        asked.append((repo_id, filename, kwargs["revision"]))
        return str(tmp_path / filename)

    monkeypatch.setattr("dynamicvit.core.hub.hf_hub_download", download)
    assert_same(DynamicViT.from_pretrained("someone/a-model", revision="v1"), model)
    assert asked == [
        ("someone/a-model", "config.json", "v1"),
        ("someone/a-model", "model.safetensors", "v1"),
    ]


#: ``config.json`` as 0.1.0 wrote it for ``small()``.
CONFIG_010 = """
{"architecture": "deit_tiny_patch16_224", "backbone_source": "timm", "format_version": 1,
"model_args": {"depth": 4, "embed_dim": 16, "global_pool": "token", "img_size": [32, 32],
"in_chans": 3, "num_classes": 3, "num_heads": 2}, "pretrained_cfg": {"architecture":
"deit_tiny_patch16_224", "classifier": "head", "crop_mode": "center", "crop_pct": 0.9,
"custom_load": false, "first_conv": "patch_embed.proj", "fixed_input_size": true, "input_size":
[3, 32, 32], "interpolation": "bicubic", "license": "apache-2.0", "mean": [0.485, 0.456, 0.406],
"num_classes": 3, "pool_size": null, "std": [0.229, 0.224, 0.225], "tag": "fb_in1k"},
"schedule": {"dropped": "gone", "keep_ratios": [0.5, 0.25, 0.125], "stages": [1, 2, 3]}}
"""


@pytest.mark.parametrize(("dropped", "policy"), [("gone", "removed"), ("merged", "merged")])
def test_a_folder_of_version_0_1_0(tmp_path: Path, dropped: str, policy: Policy) -> None:
    model = small(policy=policy)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(CONFIG_010.replace("gone", dropped))
    assert_same(DynamicViT.from_pretrained(tmp_path), model)


# ------------------------------------------------------------------ other libraries' backbones


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let timm's vision transformers name another source."""
    monkeypatch.setattr(hub, "_SOURCES", {**hub._SOURCES})
    family = type(small().bound)
    return lambda name: monkeypatch.setattr(family, "source", name)


def test_a_family_of_ones_own_is_saved_and_loaded(
    tmp_path: Path, source: Callable[[str], None]
) -> None:
    model = small()
    source("mine")
    with pytest.raises(InputError, match=r"'mine', one of inflated, timm, transformers"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    described = {"format_version": "overwritten", "depth": 4}
    hub.register_source(
        "mine", lambda _: described, lambda config: small(depth=config["depth"]).backbone
    )
    model.save_pretrained(tmp_path)
    assert config_of(tmp_path)["format_version"] == 2
    assert_same(DynamicViT.from_pretrained(tmp_path), model)


def test_a_family_without_a_source(tmp_path: Path, source: Callable[[str], None]) -> None:
    model = small()
    source("")
    with pytest.raises(InputError, match=r"VisionTransformer .*state_dict"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------ backbones timm can't name


def vision_transformer(**kwargs: Any) -> VisionTransformer:
    args = {"img_size": 32, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**{**args, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mlp_ratio": 2}, "other tensors .* blocks.0.mlp.fc1.weight"),
        ({"class_token": False, "global_pool": "avg"}, "other tensors .* pos_embed"),
        pytest.param(
            {"num_heads": 6},
            "other settings .* blocks.0.attn.num_heads is 3 instead of 6",
            marks=needs_remembered_args,
        ),
        ({"norm_layer": nn.LayerNorm}, "other settings .*eps is 1e-06 instead of 1e-05"),
    ],
)
def test_a_backbone_under_a_name_that_is_not_its_own(
    tmp_path: Path, kwargs: dict[str, Any], message: str
) -> None:
    with torch.device("meta"):
        deit_tiny = {"embed_dim": 192, "depth": 12, "num_heads": 3, "img_size": 224}
        backbone = vision_transformer(**{**deit_tiny, **kwargs})
    backbone.pretrained_cfg = timm.get_pretrained_cfg("deit_tiny_patch16_224").to_dict()
    folder = tmp_path / "new"
    with pytest.raises(InputError, match=f"deit_tiny_patch16_224 with.*{message}") as error:
        sparsify(backbone, method="dynamicvit").save_pretrained(folder)
    assert "\n" not in str(error.value)
    assert not folder.exists()  # nothing half-written


@pytest.mark.parametrize("cfg", [None, {}, {"architecture": "my_own_vit"}])
def test_a_hand_built_backbone(saved: Path, cfg: dict[str, Any] | None) -> None:
    backbone = vision_transformer()
    if cfg is not None:
        backbone.pretrained_cfg = cfg
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(InputError, match=r"VisionTransformer .*create_model"):
        sparsify(backbone, method="dynamicvit").save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@needs_remembered_args
def test_an_argument_that_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"act_layer=<class .*SiLU.*config.json can't hold"):
        small(act_layer=nn.SiLU).save_pretrained(tmp_path)


def test_a_method_without_a_name(tmp_path: Path) -> None:
    class Mine(RandomScores):
        pass

    model = small()
    other = DynamicViT(model.backbone, model.schedule, Mine)
    with pytest.raises(InputError, match=r"Mine.*register_method"):
        other.save_pretrained(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/model"):
        small().save_pretrained(tmp_path / "file" / "model")


# ------------------------------------------------------------------ broken folders


def edit(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"has no {name}"):
        DynamicViT.from_pretrained(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"{name}: truncated or not"):
        DynamicViT.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "format 3, .* up to 2"),
        ({"format_version": None}, "is not a DynamicViT's"),
        ({"architecture": "vit_gigantic"}, "vit_gigantic"),
        ({"architecture": ["x"]}, r"\['x'\]"),
        ({"architecture": "resnet18"}, "config.json: does not describe a model"),
        ({"model_args": {"no_such_argument": 1}}, "no_such_argument"),
        ({"model_args": {"checkpoint_path": "x"}}, "checkpoint_path"),
        ({"model_args": None}, "model_args must be a mapping, got None"),
        ({"model_args": {"depth": 5}}, "does not fit .*config.json: "),
        ({"schedule": {"stages": [1], "keep_ratios": 0.5}}, "keep_ratios must be a list"),
        (
            {"schedule": {"stages": [1.5], "keep_ratios": [0.5]}},
            r"stages must be a list .*got \[1\.5\]",
        ),
        ({"schedule": {"stages": [9], "keep_ratios": [0.5]}}, "stage 9 "),
        ({"schedule": {"stages": [1], "keep_ratios": [0.5]}}, "unexpected predictors.1."),
    ],
)
def test_a_config_that_does_not_fit(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(InputError, match=message) as error:
        DynamicViT.from_pretrained(saved)
    assert "\n" not in str(error.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\./no/such/folder: no such folder"):
        DynamicViT.from_pretrained("./no/such/folder")
    (tmp_path / "config.json").write_text("[1, 2]")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"config.json: is not a DynamicViT's"):
        DynamicViT.from_pretrained(tmp_path)
