"""Downloads, against a server on this machine: whole, resumed, cut, refused, and kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
import torch

from dynamicvit import InputError, load
from dynamicvit.checkpoints.released import RELEASES, download, zoo
from released_state import released_state
from run_folders import files_in

NAME = "tiny-0.6"
TINY = zoo.Architecture("Tiny", "deit_tiny_patch16_224", "DeiT", 16, 4, 2)


def checkpoint(width: int = 16, scale: float = 1.0) -> bytes:
    file = BytesIO()
    state = released_state(width=width)
    torch.save({"model": state | {"norm.weight": scale * state["norm.weight"]}}, file)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one file at every path, in the way that a test wants it.

    Attributes:
        content: the file.
        ranges: whether parts of it can be had.
        cut: after how many bytes the connection breaks, however often it is asked.
        tells_length: whether the length is said beforehand.
        status: another answer than the file.
        asked: the Range header of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = checkpoint()
        self.ranges = True
        self.cut: int | None = None
        self.tells_length = True
        self.status: int | None = None
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append(wanted)
        if server.status is not None:
            self.send_error(server.status)
            return
        start, size = 0, len(server.content)
        if wanted is not None and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if server.tells_length:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        self.wfile.write(server.content[start : server.cut])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The place where the release ``NAME``, a small DeiT, is to be had."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    release = dataclasses.replace(
        RELEASES["deit-s-0.7"],
        architecture=TINY,
        keep_ratio=0.6,
        url=f"http://127.0.0.1:{server.server_port}/f/?dl=1",
    )
    monkeypatch.setitem(RELEASES, NAME, release)
    monkeypatch.setattr(zoo, "ARCHITECTURES", (TINY,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


FINAL, PARTIAL = f"dynamicvit-{NAME}.pth", f"dynamicvit-{NAME}.pth.partial"


@pytest.mark.parametrize("tells_length", [True, False])
def test_once_and_then_from_the_cache(server: Server, tmp_path: Path, tells_length: bool) -> None:
    server.tells_length = tells_length
    folder = tmp_path / "new" / "cache"
    for _ in range(2):
        path = download(NAME, folder)
        assert path.read_bytes() == server.content
        assert files_in(folder) == [FINAL]
    assert server.asked == [None]


def test_every_loader_takes_the_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    model = load(NAME)
    assert files_in(tmp_path / "hub" / "checkpoints") == [FINAL]
    assert model.keep_ratio == 0.6
    assert load(NAME, keep_ratio=0.4).keep_ratio == 0.4
    assert server.asked == [None]
    torch.save({"model": released_state()}, tmp_path / NAME)  # a file of the user's goes first
    assert load(NAME, keep_ratio=0.3).keep_ratio == 0.3
    with pytest.raises(InputError, match="--keep-ratio"):
        load(NAME)


@pytest.mark.parametrize("share", [0.3, 0.999])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(
    server: Server, tmp_path: Path, ranges: bool, share: float
) -> None:
    server.ranges = ranges
    start = int(len(server.content) * share)
    (tmp_path / PARTIAL).write_bytes(server.content[:start])
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert server.asked == [f"bytes={start}-"]
    assert files_in(tmp_path) == [FINAL]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_retried_and_resumed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    server.cut, server.ranges = 5000, ranges
    with pytest.raises(InputError, match="5000 bytes"):
        download(NAME, tmp_path)
    assert len(server.asked) > 1
    assert files_in(tmp_path) == [PARTIAL]
    server.cut, server.asked[:] = None, []
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert server.asked == ["bytes=5000-"]
    assert files_in(tmp_path) == [FINAL]


def test_a_file_that_changed_in_between_is_found_out(server: Server, tmp_path: Path) -> None:
    start = len(server.content) // 2
    (tmp_path / PARTIAL).write_bytes(server.content[:start])
    server.content = checkpoint(scale=2.0)  # of the same size
    with pytest.raises(InputError, match="not a Tiny: wrong checksum of "):
        download(NAME, tmp_path)
    assert files_in(tmp_path) == []
    assert download(NAME, tmp_path).read_bytes() == server.content


@pytest.mark.parametrize("more", [b"", b"more"])
def test_a_partial_file_as_long_as_the_whole_is_downloaded_again(
    server: Server, tmp_path: Path, more: bytes
) -> None:
    (tmp_path / PARTIAL).write_bytes(server.content + more)
    refused(tmp_path, "416")
    assert download(NAME, tmp_path).read_bytes() == server.content


def test_the_rest_of_another_file_is_found_out(server: Server, tmp_path: Path) -> None:
    start = len(server.content) // 2
    (tmp_path / PARTIAL).write_bytes(bytes(start))
    refused(tmp_path, "not a Tiny: ")


@pytest.mark.parametrize("cached", [b"garbage", checkpoint()[:-9], checkpoint(width=64)])
def test_a_broken_file_in_the_cache_is_replaced(
    server: Server, tmp_path: Path, cached: bytes
) -> None:
    (tmp_path / FINAL).write_bytes(cached)
    server.status = 503
    with pytest.raises(InputError, match=rf"503 .*{FINAL} is broken: \w") as error:
        download(NAME, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / FINAL).read_bytes() == cached  # it may be all that the user has
    server.status = None
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert files_in(tmp_path) == [FINAL]


# ------------------------------------------------------------------ failed downloads


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        download(NAME, folder)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{NAME}: {RELEASES[NAME].url}: ")
    assert "https://github.com/raoyongming/DynamicViT" in message
    assert "dynamicvit convert FILE --keep-ratio 0.6 --out DIR" in message
    assert files_in(folder) == []


def test_a_dead_link(server: Server, tmp_path: Path) -> None:
    server.status = 404
    refused(tmp_path, "404 .* https://drive.google.com")


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"<html>Log in first</html>", "truncated"), (checkpoint(width=64), ".*64 wide")],
)
def test_another_file(server: Server, tmp_path: Path, content: bytes, told: str) -> None:
    server.content = content
    refused(tmp_path, f"not a Tiny: {told}")


def test_no_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:9/"
    monkeypatch.setitem(RELEASES, NAME, dataclasses.replace(RELEASES[NAME], url=url))
    refused(tmp_path, "127.0.0.1:9/")


def test_a_server_that_does_not_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    monkeypatch.setattr(Handler, "do_GET", lambda self: waits.wait(5))
    refused(tmp_path, "timed out")
    waits.set()


def test_a_cache_that_can_not_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/cache: .*TORCH_HOME"):
        download(NAME, tmp_path / "file" / "cache")
    assert server.asked == []
