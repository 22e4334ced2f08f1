"""Pages of docs/ run whose commands need data or networks of the world, on small stand-ins."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dynamicvit import inflate, sparsify
from dynamicvit.data.sources import remote
from exports import ignore_deprecations, shallow
from pictures import encoded, noise_folders
from servers import FileServer, serving
from test_readme import run

ROOT = Path(__file__).resolve().parents[1]


def commands(page: str) -> list[list[str]]:
    """The words of each command of the library on a page, without "dynamicvit"."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        shlex.split(line, comments=True)[1:] for line in re.findall(r"^dynamicvit .*$", text, re.M)
    ]


# ---------------------------------------------------------------- hierarchical.md

#: ConvNeXt-T's stages, of few channels.
NARROW = {"dims": (8, 16, 24, 32), "num_classes": 4}


def test_hierarchical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int], capsys: Any
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    create = timm.create_model

    def narrow(name: str, pretrained: bool = False, **given: Any) -> Any:
        return create(name, **{**NARROW, **given})

    monkeypatch.setattr(timm, "create_model", narrow)
    names = {"images": torch.randn(1, 3, 64, 64)}
    changed = {"auxiliary_in_channels=384": "hidden_size=8, auxiliary_in_channels=24"}
    made = run("docs/hierarchical.md", names, changed)
    levels = [made[name].shape[1:] for name in ("small", "medium", "large", "largest")]
    assert levels == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]
    assert made["maps"].feature_info.channels() == [8, 16, 24, 32]
    with torch.no_grad():
        logits = made["network"].eval()(torch.randn(1, 3, 64, 64)).logits
    assert logits.shape == (1, 150, 64, 64)

    noise_folders(tmp_path / "IMAGES", classes=2, each=2)
    for label, name in enumerate(("n01440764", "n01443537")):  # of ImageNet, as the model's
        Path("IMAGES", str(label)).rename(Path("IMAGES", name))
    shutil.copytree("IMAGES", "IMAGENET")
    first, second = commands("hierarchical.md")
    few = ["--set", "batch_size=2", "--workers", "0", "--no-pretrained"]
    assert command(*first, "--set", "images=2", *few) == 0
    assert (tmp_path / "mine" / "config.json").is_file()
    # A hundred epochs: what it says before them.
    assert command(*second, "--dry-run", *few) == 0
    assert "learning_rate: 0.004" in capsys.readouterr().out


# ---------------------------------------------------------------- benchmarking.md


@ignore_deprecations
def test_benchmarking(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., int],
    exported: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in ("matplotlib", "openvino"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    shallow().save_pretrained("runs/mine")
    for name, suffix in product(("model", "dense"), (".xml", ".bin")):
        shutil.copy(exported("openvino").with_suffix(suffix), name + suffix)
    lines = commands("benchmarking.md")
    assert len(lines) == 3
    for words in lines:
        capsys.readouterr()
        # To write files takes as long as the rest together: test_benchmark_runtimes times those.
        words = [{"100": "2", "openvino": "onednn"}.get(word, word) for word in words]
        few = {"--samples": "2", "--batch-size": "1", "--threads": "1"}
        assert command(*words, *chain(*(few.items() - set(pairwise(words))))) == 0
        assert "speed-up" in capsys.readouterr().out
    assert Path("speed.png").stat().st_size > 1000


# ---------------------------------------------------------------- data.md


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The page's sources: shards in a folder, by HTTP and on S3, and a data set of the Hub."""
    for package in ("webdataset", "fsspec", "aiohttp", "s3fs", "datasets"):
        pytest.importorskip(package)
    import datasets

    from test_data_shards import write_info, write_shard

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNAMICVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT", 0.01)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shallow().save_pretrained("deit_small_patch16_224")
    noise_folders(tmp_path / "PHOTOS", classes=1, each=2)
    for place in ("imagenet-shards", "more", "photos", "bucket/photos"):
        for number in range(2):
            write_shard(tmp_path / place / f"train-{number:04}.tar", [1, 2], cls=lambda gray: gray)
    write_info(tmp_path / "bucket" / "photos", val={"train-0001.tar": 2})
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = {"image": [{"bytes": encoded(gray)} for gray in (1, 2)], "label": [1, 2]}
    for split in ("train", "validation"):
        file = tmp_path / "user" / "pets" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(table, features=kinds).to_parquet(file)
    with serving(tmp_path) as server:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield server


def test_data(world: FileServer, command: Callable[..., int], capsys: Any) -> None:
    changed = {"https://example.org": world.url, "0127": "0001"}
    lines = commands("data.md")
    assert len(lines) == 6
    for words in lines:
        for said, small in changed.items():
            words = [word.replace(said, small) for word in words]
        capsys.readouterr()
        if words[0] == "train":  # data are opened and counted
            assert command(*words, "--dry-run", "--set", "batch_size=2", "--workers", "0") == 0
            found = capsys.readouterr().out
            assert re.search(r"data +\S+: [24] images", found), found
        else:
            shallow().save_pretrained("runs/mine")
            assert command(*words, "--workers", "0") == 0, words
            shutil.rmtree("runs")
            assert re.search(r"\b2\b", capsys.readouterr().out)


def test_data_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from clips import write_clip

    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "clips" / split / "a").mkdir(parents=True)
        write_clip(tmp_path / "clips" / split / "a" / "0.mp4", 18)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24)
    names = {"model": sparsify(inflate(vit, 16), 0.5)}
    made = run("docs/data.md", names, {"num_workers=4": "num_workers=0"})
    assert [batch.images.shape for batch in made["batches"]] == [(1, 16, 3, 32, 32)]
    assert made["held"][0].image.shape == (6, 16, 3, 32, 32)


# ---------------------------------------------------------------- scripts named on any page


class Parsed(Exception):  # noqa: N818
    """A script has taken its arguments."""


def scripts() -> list[tuple[str, list[str]]]:
    """The lines of all pages that run a script of benchmarks/, as words."""
    found = []
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?:\w+=\S+ )*python benchmarks/.*$", text, re.M):
            words = shlex.split(line, comments=True)
            found.append((page.name, words[words.index("python") + 1 :]))
    return found


@pytest.mark.parametrize(("page", "words"), scripts(), ids=lambda value: str(value)[:60])
def test_scripts_take_what_pages_give_them(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their work needs real data and hours; that they exist and know the options does not."""
    parse = argparse.ArgumentParser.parse_known_args

    def known(parser: argparse.ArgumentParser, *_: Any) -> None:
        parse(parser)
        raise Parsed

    def all_known(parser: argparse.ArgumentParser, *_: Any) -> None:
        _, unknown = parse(parser)
        assert not unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", known)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", all_known)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    with suppress(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        pytest.fail(f"{page}: {words[0]} parses nothing")
