"""Shards from elsewhere: fetched whole, however often the connection breaks, or named."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamicvit import predict
from dynamicvit.data import ImageData, Loader
from dynamicvit.data.sources import remote
from dynamicvit.errors import InputError
from families import DEIT
from pictures import WORKERS, encoded, grays, labels, write_image
from servers import FileServer, serving
from test_data_shards import LEVELS, write_info, write_shard

for package in ("webdataset", "fsspec", "aiohttp"):
    pytest.importorskip(package, reason="pip install 'dynamicvit[data]'")

pytestmark = WORKERS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own; short waits, and requests of a few hundred bytes."""
    monkeypatch.setenv("DYNAMICVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT", 0.01)
    monkeypatch.setattr(remote, "STALL", 0.3)
    monkeypatch.setattr(remote, "CHUNK", 3000)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    """Three shards of 4, 3 and 2 images in the folder (or bucket) b."""
    for name, levels in {"2": [10, 11, 12, 20], "10": [21, 22, 30], "11": [31, 40]}.items():
        write_shard(tmp_path / "b" / f"train-{name}.tar", levels, cls=lambda gray: gray // 10)
    with serving(tmp_path) as server:
        yield server


def fetches(server: FileServer, name: str) -> list[int]:
    """The first bytes of all requests for a shard."""
    return [start for path, start in server.requests if path.endswith(name)]


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_by_http(server: FileServer, tmp_path: Path, workers: int) -> None:
    name = f"wds/{server.url}/b/train-{{2,10,11}}.tar"
    data = pickle.loads(pickle.dumps(ImageData(name)))  # as for a spawned process
    batches = Loader(data, 4, num_workers=workers)
    assert grays(batches) == LEVELS
    assert labels(batches) == [level // 10 for level in LEVELS]
    assert data.path(4) == f"{server.url}/b/train-10.tar/image021.png"
    assert batches.num_images == len(LEVELS)
    once = list(server.requests)
    assert len(once) == len(set(once)), "each part of each shard is fetched once"
    assert grays(Loader(ImageData(name), 4)) == LEVELS
    assert server.requests == once, "a second run finds them in the cache"


def test_a_folder_with_an_info_file(server: FileServer, tmp_path: Path) -> None:
    write_info(tmp_path / "b", train={"train-2.tar": 4, "train-11.tar": 2}, val={"train-10.tar": 3})
    assert grays(Loader(ImageData(f"wds/{server.url}/b"), 4)) == [10, 11, 12, 20, 31, 40]
    data = ImageData(f"wds/{server.url}/b@val")
    assert len(data) == 3
    assert grays(Loader(data, 4)) == [21, 22, 30]
    assert fetches(server, "train-11.tar"), "of the split train"
    with pytest.raises(InputError, match="'test'"):
        ImageData(f"wds/{server.url}/b@test")


def test_nothing_is_fetched_before_it_is_read(server: FileServer, tmp_path: Path) -> None:
    write_info(tmp_path / "b", train={"train-2.tar": 4, "train-10.tar": 3, "train-11.tar": 2})
    batches = Loader(ImageData(f"wds/{server.url}/b"), 4)
    batches.set_epoch(0, start=2)  # the ninth image
    assert grays(batches) == [40]
    assert batches.reopened == (f"{server.url}/b/train-11.tar",)
    assert not fetches(server, "train-10.tar")


@pytest.mark.parametrize("fault", ["stall", "break", 503])
def test_a_connection_that_fails_goes_on_where_it_was(
    server: FileServer, fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["/b/train-10.tar"] = [fault]
    started = time.monotonic()
    assert grays(Loader(ImageData(f"wds/{server.url}/b/train-10.tar"), 4)) == LEVELS[4:7]
    assert time.monotonic() - started < 10
    assert fetches(server, "train-10.tar")[:2] == [0, 0]
    assert f"{server.url}/b/train-10.tar: " in caplog.text


def test_a_server_that_is_busy_or_down_is_asked_again(
    server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    """fsspec calls both a missing file."""
    server.faults = {"HEAD /b/train-10.tar": [503], "/b/train-10.tar": [503]}
    assert grays(Loader(ImageData(f"wds/{server.url}/b/train-10.tar"), 4)) == LEVELS[4:7]
    assert "503" in caplog.text
    with pytest.raises(InputError, match=r"can't be fetched .*onnect"):
        ImageData("wds/http://127.0.0.1:9/a.tar")
    assert caplog.text.count("http://127.0.0.1:9/a.tar: ") == remote.ATTEMPTS - 1


def test_more_failures_than_attempts_where_each_part_comes_at_last(server: FileServer) -> None:
    server.faults["/b/train-10.tar"] = [503, 503, "break", None] * 5
    assert grays(Loader(ImageData(f"wds/{server.url}/b/train-10.tar"), 4)) == LEVELS[4:7]
    assert len(fetches(server, "train-10.tar")) > 3 * remote.ATTEMPTS


@pytest.mark.parametrize("fault", ["stall", "break"])
def test_a_server_that_gives_whole_files_only(server: FileServer, fault: str) -> None:
    server.ranges = False
    server.faults["/b/train-10.tar"] = [fault, fault]
    assert grays(Loader(ImageData(f"wds/{server.url}/b/train-10.tar"), 4)) == LEVELS[4:7]
    assert fetches(server, "train-10.tar") == [0, 0, 0]


def test_a_server_that_stays_away_ends_the_run(server: FileServer, tmp_path: Path) -> None:
    write_info(tmp_path / "b", train={"train-2.tar": 4, "train-10.tar": 3, "train-11.tar": 2})
    server.faults["/b/train-10.tar"] = [503] * 99
    for workers in (1, 0):
        batches = Loader(ImageData(f"wds/{server.url}/b"), 4, num_workers=workers)
        with pytest.raises(InputError, match=r"^http.*/b/train-10\.tar can't be fetched \(503"):
            list(batches)
    assert len(fetches(server, "train-10.tar")) == 2 * remote.ATTEMPTS
    server.faults.clear()
    remote._given_up.clear()
    assert grays(Loader(ImageData(f"wds/{server.url}/b"), 4)) == LEVELS, "and the next has all"


def test_predictions_resume_where_a_server_went_away(server: FileServer, tmp_path: Path) -> None:
    write_info(tmp_path / "b", train={"train-2.tar": 4, "train-10.tar": 3, "train-11.tar": 2})
    out = tmp_path / "out.csv"
    name, model = f"wds/{server.url}/b", DEIT.sparse()
    server.faults["/b/train-11.tar"] = [503] * 99
    with pytest.raises(InputError, match=r"train-11\.tar can't be fetched"):
        predict(model, name, out, batch_size=2, workers=0)
    server.faults.clear()
    remote._given_up.clear()
    found = predict(model, name, out, batch_size=2, workers=0)
    assert (found.resumed, found.images) == (6, 9)
    lines = out.read_text().splitlines()[1:]
    names = [line.partition(",")[0].rpartition("/")[2] for line in lines]
    assert names == [f"image{gray:03}.png" for gray in LEVELS]


def test_what_is_missing_is_named_at_once(server: FileServer, monkeypatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 100.0)
    server.faults["/b/train-2.tar"] = [403]
    for place, said in {
        f"{server.url}/b/train-{{10,12}}.tar": r"/b/train-12\.tar can't be fetched \(not found\)",
        f"{server.url}/b/train-2.tar": "403",
        f"{server.url}/c": r"wds/.*/c/train-\{0000\.\.0127\}\.tar",
        f"{server.url}/b@val": "_info.json",
        "nonsense://b/1.tar": "nonsense",
    }.items():
        with pytest.raises(InputError, match=said):
            ImageData(f"wds/{place}")
    with pytest.raises(InputError, match="wds/http"):
        ImageData(f"{server.url}/b/train-2.tar")


def test_a_pipe(server: FileServer, tmp_path: Path) -> None:
    """Its first run fails after half of the shard."""
    ran = tmp_path / "ran"
    half = f"test -e {ran} || {{ touch {ran}; head -c 5000; exit 1; }}"
    data = ImageData(f"wds/pipe:cat {tmp_path}/b/train-2.tar | ( {half}; cat )")
    assert ran.exists()
    assert grays(Loader(data, 4)) == LEVELS[:4]
    with pytest.raises(InputError, match="exit code 3: no such thing"):
        ImageData("wds/pipe:echo no such thing >&2; exit 3")
    both = ImageData(f"wds/pipe:cat {tmp_path}/b/train-{{10..11}}.tar")
    assert grays(Loader(both, 4, num_workers=2)) == LEVELS[4:]


# ---------------------------------------------------------------- S3


def test_shards_by_s3(server: FileServer, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("s3fs", reason="pip install 'dynamicvit[s3]'")
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    assert grays(Loader(ImageData("wds/s3://b/train-{2,11}.tar"), 4)) == [10, 11, 12, 20, 31, 40]
    server.faults["/b/train-10.tar"] = ["break", 503]
    data = ImageData("wds/s3://b")  # listed
    assert data.block_names == tuple(f"s3://b/train-{n}.tar" for n in (2, 10, 11))
    assert grays(Loader(data, 4, num_workers=2)) == LEVELS
    write_info(tmp_path / "b", val={"train-10.tar": 3})
    assert grays(Loader(ImageData("wds/s3://b@val"), 4)) == [21, 22, 30]
    with pytest.raises(InputError, match=r"s3://b/no\.tar can't be fetched"):
        ImageData("wds/s3://b/no.tar")


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture
def parquet(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """Three Parquet files of 4, 3 and 2 images, with two columns of classes."""
    datasets = pytest.importorskip("datasets", reason="pip install 'dynamicvit[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(server.root / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=list("abcde"))}
    kinds["fine"] = datasets.Value("int64")
    for number, levels in enumerate((LEVELS[:4], LEVELS[4:7], LEVELS[7:])):
        table = {
            "img": [{"bytes": encoded(gray)} for gray in levels],
            "label": [gray // 10 for gray in levels],
            "fine": levels,
        }
        rows = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
        rows.to_parquet(server.root / "b" / f"train-0000{number}-of-00003.parquet")
    return server


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_parquet(parquet: FileServer, workers: int) -> None:
    name = f"hfids/{parquet.url}/b/train-0000{{0..2}}-of-00003.parquet"
    parquet.faults = {f"/b/train-0000{n}-of-00003.parquet": ["break", 503] for n in range(3)}
    data = ImageData(name)
    assert data.classes == tuple("abcde")
    assert data.labels.tolist() == [level // 10 for level in LEVELS]
    parquet.faults = {f"/b/train-0000{n}-of-00003.parquet": ["break", 503] for n in range(3)}
    batches = Loader(pickle.loads(pickle.dumps(data)), 4, num_workers=workers)
    assert grays(batches) == LEVELS
    assert data.path(5) == f"{parquet.url}/b/train-00001-of-00003.parquet#1"
    assert ImageData(f"{name}:fine").labels.tolist() == LEVELS
    batches.set_epoch(0, start=1)
    assert batches.reopened == ()  # the first four are the first file
    asked = len(parquet.requests)
    assert grays(Loader(ImageData(name), 4)) == LEVELS
    assert [path for path, _ in parquet.requests[asked:]] == ["/b/train-00000-of-00003.parquet"], (
        "only the schema is read again"
    )


def test_a_data_set_by_name_is_read_file_by_file(parquet: FileServer, cache: Path) -> None:
    data = ImageData(f"hfids/{parquet.root}/b:fine")
    assert len(data) == 9
    batches = Loader(data, 4)
    batches.set_epoch(0, start=2)
    assert grays(batches) == [40]
    assert len([path for path in cache.iterdir() if not path.suffix]) == 1
    with pytest.raises(InputError, match="'val'; splits are train"):
        ImageData(f"hfids/{parquet.root}/b@val")


def test_streams_that_cannot_be_used(parquet: FileServer, monkeypatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 100.0)
    write_image(parquet.root / "folder" / "a" / "1.png", 1)
    for place, said in {
        f"{parquet.url}/b/none.parquet": r"/b/none\.parquet can't be fetched \(not found\)",
        f"{parquet.root}/folder": "hfds/.*/folder",
        f"{parquet.root}/nowhere": "nowhere can't be opened",
        f"{parquet.url}/b/train-00000-of-00003.parquet:id": "'id'.* img, label, fine",
    }.items():
        with pytest.raises(InputError, match=said):
            ImageData(f"hfids/{place}")


# ---------------------------------------------------------------- the cache


def test_processes_share_one_cache(server: FileServer) -> None:
    """Each of four workers reads from each shard, which is fetched once."""
    write_info(server.root / "b", train={"train-2.tar": 4, "train-10.tar": 3, "train-11.tar": 2})
    assert grays(Loader(ImageData(f"wds/{server.url}/b"), 1, num_workers=4)) == LEVELS
    assert len(server.requests) == len(set(server.requests))


def test_processes_begin_to_count_with_different_shards(server: FileServer, monkeypatch) -> None:
    monkeypatch.setattr(remote, "CONNECTIONS", 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    data = ImageData(f"wds/{server.url}/b/train-{{2,10,11}}.tar")
    assert server.requests[0][0] == "/b/train-10.tar"
    assert grays(Loader(data, 4)) == LEVELS


def test_a_full_cache_forgets_what_was_used_least_recently(
    server: FileServer, cache: Path, monkeypatch
) -> None:
    monkeypatch.setattr(remote, "FRESH", 0.0)
    whole = sum(path.stat().st_size for path in (server.root / "b").iterdir())
    monkeypatch.setenv("DYNAMICVIT_CACHE_GB", str((whole - 1) / 1e9))
    data = ImageData(f"wds/{server.url}/b/train-{{2,10,11}}.tar")
    shards = [path for path in cache.iterdir() if not path.suffix]
    assert len(shards) == 2
    asked = len(server.requests)
    assert grays(Loader(data, 4)) == LEVELS, "fetched again"
    assert len(server.requests) > asked
    assert not list(cache.glob(".*"))
    monkeypatch.setenv("DYNAMICVIT_CACHE_GB", "large")
    with pytest.raises(InputError, match="'large'"):
        ImageData(f"wds/{server.url}/b/train-2.tar?again")


def test_a_full_disk_is_said_at_once(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(remote, "WAIT", 100.0)
    monkeypatch.setattr(remote, "_read", write)
    with pytest.raises(InputError, match=r"train-2\.tar .*No space left"):
        ImageData(f"wds/{server.url}/b/train-2.tar")
