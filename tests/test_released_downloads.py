"""Downloads, against a server on this machine: whole, resumed, cut, refused, and kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest
import torch

from dynamicvit import InputError
from dynamicvit.checkpoints.loading import load_model
from dynamicvit.checkpoints.released import RELEASES, download, load_released, recognize, zoo
from released_state import released_state

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
        kind: its content type.
        ranges: whether parts of it can be had.
        cut: after how many bytes the connection breaks.
        tells_length: whether the length is said beforehand.
        chunked: whether it comes in chunks, of which the last one is empty.
        etag: tag of the content, if any.
        status: another answer than the file.
        asked: the Range header of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = checkpoint()
        self.kind = "application/octet-stream"
        self.ranges = True
        self.cut: int | None = None
        self.tells_length = True
        self.chunked = False
        self.etag: str | None = None
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
        if self.headers["If-Range"] not in (None, server.etag):
            wanted = None
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
        self.send_header("Content-Type", server.kind)
        if server.tells_length:
            self.send_header("Content-Length", str(size - start))
        if server.etag is not None:
            self.send_header("ETag", server.etag)
        if server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        content = server.content[start : server.cut]
        for at in range(0, len(content), 4096) if server.chunked else ():
            chunk = content[at : at + 4096]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if not server.chunked:
            self.wfile.write(content)
        elif server.cut is None:
            self.wfile.write(b"0\r\n\r\n")

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
        name=NAME,
        architecture=TINY,
        keep_ratio=0.6,
        url=f"http://127.0.0.1:{server.server_port}/f/?dl=1",
    )
    monkeypatch.setitem(RELEASES, NAME, release)
    monkeypatch.setattr(zoo, "ARCHITECTURES", (TINY,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FINAL, PARTIAL = f"dynamicvit-{NAME}.pth", f"dynamicvit-{NAME}.pth.partial"


@pytest.mark.parametrize("tells_length", [True, False])
def test_once_and_then_from_the_cache(server: Server, tmp_path: Path, tells_length: bool) -> None:
    server.tells_length = tells_length
    folder = tmp_path / "new" / "cache"
    for _ in range(2):
        path = download(NAME, folder)
        assert path.read_bytes() == server.content
        assert names(folder) == [FINAL]
    assert server.asked == [None]


def test_every_loader_takes_the_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    model = load_released(NAME)
    assert names(tmp_path / "hub" / "checkpoints") == [FINAL]
    assert model.keep_ratio == 0.6
    assert load_model(NAME, keep_ratio=0.4).keep_ratio == 0.4
    assert server.asked == [None]
    torch.save({"model": released_state()}, tmp_path / NAME)  # a file of the user's goes first
    assert load_model(NAME, keep_ratio=0.3).keep_ratio == 0.3
    with pytest.raises(InputError, match="does not say its keep ratio"):
        load_released(NAME)


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
    assert names(tmp_path) == [FINAL]


def test_the_bar_is_told_how_much_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(server.content)
    told: list[tuple[int, int | None]] = []

    @contextmanager
    def bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
        assert name == NAME
        yield lambda done, total: told.append((done, total))

    monkeypatch.setattr("dynamicvit.checkpoints.released.downloads._bar", bar)
    (tmp_path / PARTIAL).write_bytes(server.content[: size // 2])
    download(NAME, tmp_path)
    assert told[0][0] > size // 2  # what was there counts
    assert told[-1] == (size, size)


@pytest.mark.parametrize("etag", [None, '"first"', 'W/"first"'])
def test_a_broken_connection_is_gone_on_with(
    server: Server, tmp_path: Path, etag: str | None
) -> None:
    size = len(server.content)
    server.etag, server.cut = etag, size // 2
    with pytest.raises(InputError, match=f"broke off after {size // 2} of {size} bytes; run it ag"):
        download(NAME, tmp_path)
    kept = [PARTIAL, f"{PARTIAL}.etag"] if etag == '"first"' else [PARTIAL]
    assert names(tmp_path) == kept  # a weak tag vouches for no bytes
    server.cut = None
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert server.asked == [None, f"bytes={size // 2}-"]
    assert names(tmp_path) == [FINAL]


def test_a_broken_connection_of_unknown_length_too(server: Server, tmp_path: Path) -> None:
    server.tells_length, server.chunked, server.cut = False, True, 10_000
    with pytest.raises(InputError, match="broke off after 10000 bytes; run it again to go on"):
        download(NAME, tmp_path)
    assert names(tmp_path) == [PARTIAL]
    server.cut = None
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert server.asked == [None, "bytes=10000-"]


@pytest.mark.parametrize("etag", ['"second"', 'W/"first"', None])
def test_a_file_that_changed_in_between_is_had_anew(
    server: Server, tmp_path: Path, etag: str | None
) -> None:
    server.etag, server.cut = '"first"', len(server.content) // 2
    with pytest.raises(InputError, match="broke off"):
        download(NAME, tmp_path)
    server.etag, server.cut = etag, None
    server.content = checkpoint(scale=2.0)  # of the same size
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert names(tmp_path) == [FINAL]


def test_all_bytes_were_there_already(server: Server, tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(server.content)
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert server.asked == [f"bytes={len(server.content)}-"]


def test_more_bytes_than_the_file_has_are_not_its(server: Server, tmp_path: Path) -> None:
    (tmp_path / PARTIAL).write_bytes(server.content + b"more")
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert server.asked == [f"bytes={len(server.content) + 4}-", None]


def test_the_rest_of_another_file_is_found_out(server: Server, tmp_path: Path) -> None:
    start = len(server.content) // 2
    (tmp_path / PARTIAL).write_bytes(bytes(start))
    with pytest.raises(InputError, match="what came is no Tiny: truncated or not a checkpoint"):
        download(NAME, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("cached", [b"garbage", checkpoint()[:-9], checkpoint(width=64)])
def test_a_broken_file_in_the_cache_is_replaced(
    server: Server, tmp_path: Path, cached: bytes
) -> None:
    (tmp_path / FINAL).write_bytes(cached)
    server.status = 503
    with pytest.raises(InputError, match=rf"503 .*{FINAL} in the cache is of no use: \w") as error:
        download(NAME, tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / FINAL).read_bytes() == cached  # it may be all that the user has
    server.status = None
    assert download(NAME, tmp_path).read_bytes() == server.content
    assert names(tmp_path) == [FINAL]


# ------------------------------------------------------------------ what can't be had


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        download(NAME, folder)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{NAME}: {RELEASES[NAME].url}: ")
    assert "https://github.com/raoyongming/DynamicViT" in message
    assert "dynamicvit convert FILE --keep-ratio 0.6 --out DIR" in message
    assert names(folder) == []


def test_a_dead_link(server: Server, tmp_path: Path) -> None:
    server.status = 404
    refused(tmp_path, "the server says 404 Not Found; other places are https://drive.google.com")


def test_a_web_page_in_place_of_the_file(server: Server, tmp_path: Path) -> None:
    server.kind, server.content = "text/html; charset=utf-8", b"<html>Log in first</html>"
    refused(tmp_path, "a web page came in place of the file")
    server.kind = "application/octet-stream"
    refused(tmp_path, "what came is no Tiny: truncated or not a checkpoint")


def test_another_architecture(server: Server, tmp_path: Path) -> None:
    server.content = checkpoint(width=64)
    refused(tmp_path, "what came is no Tiny: it is a DeiT layout, 64 wide, 4 blocks")


def test_no_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, reason in (
        ("http://127.0.0.1:9/", "Connection refused"),
        ("http://no-such-host.invalid/", r"no such server, or no network \("),
    ):
        monkeypatch.setitem(RELEASES, NAME, dataclasses.replace(RELEASES[NAME], url=url))
        refused(tmp_path, reason)


def test_a_server_that_does_not_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = threading.Event()
    monkeypatch.setattr("dynamicvit.checkpoints.released.downloads.TIMEOUT", 0.05)
    monkeypatch.setattr(Handler, "do_GET", lambda self: waits.wait(5))
    refused(tmp_path, "no answer for 0.05 s")
    waits.set()


def test_a_cache_that_can_not_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/cache: can't be written.*TORCH_HOME names another"):
        download(NAME, tmp_path / "file" / "cache")
    assert server.asked == []


def test_a_cached_file_has_a_name_that_tells_its_ratio(tmp_path: Path) -> None:
    path = tmp_path / RELEASES["lvvit-s-0.5"].file_name
    torch.save({"model": released_state()}, path)
    assert recognize(path, num_heads=2).keep_ratio == 0.5
