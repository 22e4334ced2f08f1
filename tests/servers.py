"""A local server of files, by HTTP or as S3, that stalls and breaks off when told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs


class FileServer(ThreadingHTTPServer):
    """Serves a folder; lists of S3, by ``/BUCKET?list-type=2``, know no folders.

    Attributes:
        faults: for a path (or ``"HEAD PATH"``), what befalls its next requests: ``"stall"`` sends
            half and then nothing, ``"break"`` half and the end of the connection, a number that
            status, None nothing.
        ranges: whether parts of files are given.
        requests: the paths of all GETs, with the first byte asked for.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.faults: dict[str, list[Any]] = {}
        self.ranges = True
        self.requests: list[tuple[str, int]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(root: Path) -> Iterator[FileServer]:
    """A server of a folder, in a thread of its own."""
    server = FileServer(root)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for word of its header

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, _, query = self.path.partition("?")
        file = self.server.root / path.strip("/")
        if "list-type=2" in query:
            prefix = parse_qs(query).get("prefix", [""])[0]
            listing = self._listing(file, prefix)
            return self._send(200, listing, {"Content-Type": "application/xml"}, body)
        if not file.is_file():
            return self._send(404, b"", {}, body)
        headers_fail = None if body else self.server.faults.get(f"HEAD {path}")
        if headers_fail:
            return self._send(headers_fail.pop(0), b"", {}, body)
        content, status, start = file.read_bytes(), 200, 0
        headers = {
            "ETag": f'"{md5(content).hexdigest()}"',
            "Last-Modified": formatdate(usegmt=True),
        }
        if self.server.ranges:
            headers["Accept-Ranges"] = "bytes"
            if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
                content, status = content[start : end + 1], 206
        if body:
            self.server.requests.append((path, start))
            faults = self.server.faults.get(path)
            fault = faults.pop(0) if faults else None
            if fault is not None:
                return self._fail(fault, content, status, headers)
        self._send(status, content, headers, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _fail(self, fault: Any, content: bytes, status: int, headers: dict[str, str]) -> None:
        if isinstance(fault, int):
            return self._send(fault, b"", {}, True)
        self._send(status, content, headers, False)
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if fault == "stall":
            self.server.over.wait(20)
        self.close_connection = True

    def _listing(self, folder: Path, prefix: str) -> bytes:
        keys = "".join(
            f"<Contents><Key>{file.relative_to(folder)}</Key><Size>{file.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for file in sorted(folder.rglob("*"))
            if file.is_file() and str(file.relative_to(folder)).startswith(prefix)
        )
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return (
            f'<?xml version="1.0"?><ListBucketResult xmlns="{space}"><Name>{folder.name}</Name>'
            f"<IsTruncated>false</IsTruncated>{keys}</ListBucketResult>"
        ).encode()
