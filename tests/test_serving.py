"""docs/serving.md: its commands run; a real server answers as the files do, and survives."""

from __future__ import annotations

import http.client
import json
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from dynamicvit.data import eval_transform
from dynamicvit.runtimes import load_exported
from exports import ignore_deprecations, shallow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")

pytestmark = ignore_deprecations


def lines(start: str) -> list[str]:
    return re.findall(rf"^{re.escape(start)} .*$", PAGE, re.M)


class Server:
    """The page's server of the page's files, in the current folder."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        [line] = lines("python examples/serve.py")
        words = [sys.executable, str(ROOT / shlex.split(line)[1]), *shlex.split(line)[2:]]
        more = ["--port", str(self.port), "--threads", "1"]
        self.said = Path("stderr.txt")  # no pipe, which would wait for every child's end
        with self.said.open("w") as errors:
            self.process = subprocess.Popen([*words, *more], stderr=errors)
        end = time.monotonic() + 300
        while self.ask("GET", "/health")[0] != 200:
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < end
            time.sleep(0.2)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError:
            return 0, b""
        finally:
            connection.close()

    def unfinished(self, length: int = 1000) -> socket.socket:
        """A request whose image never comes."""
        sent = socket.create_connection(("127.0.0.1", self.port))
        sent.settimeout(30)
        sent.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
        return sent


@pytest.fixture
def server(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., int],
    exported: Callable[..., Path],
) -> Iterator[Server]:
    pytest.importorskip("litserve")
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    shallow().save_pretrained("runs/mine")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    dense, *sparse = lines("dynamicvit export")
    assert command(*shlex.split(dense)[1:], "--batch", 1) == 0  # written faster
    # Those with stages were exported for other tests: each takes seconds.
    for line, policy in zip(sparse, ("removed", "merged"), strict=True):
        target = Path(shlex.split(line)[shlex.split(line).index("-o") + 1])
        for suffix in (".xml", ".bin"):
            source = exported("openvino", policy=policy).with_suffix(suffix)
            shutil.copy(source, target.with_name(target.stem + suffix))
    running = Server()
    try:
        yield running
    finally:
        if running.process.poll() is None:
            children = psutil.Process(running.process.pid).children(recursive=True)
            running.process.kill()  # first, as it would start the others again
            for process in children:
                process.kill()
        running.process.wait()


@pytest.mark.extended  # six processes, each of which imports a runtime or torch
def test_the_page(server: Server) -> None:
    body = Path("photo.jpg").read_bytes()
    budgets = ["dense", "0.7", "0.5"]

    # Budgets mixed in one batch: each has the answer that its file gives alone.
    with ThreadPoolExecutor(9) as pool:
        paths = [f"/predict?budget={budget}" for budget in budgets * 3]
        found = list(pool.map(lambda path: server.ask("POST", path, body), paths))
    outputs = {}
    for budget in budgets:
        model = load_exported(f"{budget}.xml")
        photo = eval_transform(model)(Image.open("photo.jpg"))[None]
        outputs[budget] = model.forward_pruned(photo)
    for budget, (status, said) in zip(budgets * 3, found, strict=True):
        assert status == 200
        answer, output = json.loads(said), outputs[budget]
        shares, classes = output.logits.softmax(-1)[0].topk(len(answer["classes"]))
        assert answer["budget"] == budget
        assert answer["classes"] == classes.tolist()
        assert answer["probabilities"] == pytest.approx(shares.tolist(), abs=1e-3)
        assert answer["kept"] == [stage[0].tolist() for stage in output.kept_index]
        assert answer["grid"] == list(output.grid)
        assert bool(answer["kept"]) == (budget != "dense")

    # The page's clients.
    code = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.M))
    names: dict[str, Any] = {}
    exec(compile(code.replace("8000", str(server.port)), "serving.md", "exec"), names)
    assert names["answer"] == json.loads(found[1][1])
    if shutil.which("curl"):
        for line in lines("curl"):
            subprocess.run(
                [*shlex.split(line.replace("8000", str(server.port))), "-sf"], check=True
            )

    # What the page says is refused.
    serving = import_from(ROOT / "benchmarks", "serving")
    statuses = {
        name: serving.answer_to(attack, server.port) for name, attack in serving.attacks().items()
    }
    ended = statuses.pop("64 MB in chunks")
    assert ended in (0, 413)  # it may go before its answer is read
    assert statuses == {
        "text": 422,
        "nothing": 422,
        "half a JPEG": 422,
        "100 megapixels": 413,
        "a line": 413,
        "16 bits, 16 megapixels": 200,
        "a budget that is not there": 422,
        "a terabyte, stated": 413,
        "another path": 404,
        "GET": 405,
    }

    # A full service says so at once, while 32 wait, and is free again when clients hang up.
    waiting = [server.unfinished() for _ in range(34)]
    first = select.select(waiting, [], [], 60)[0][0]
    assert first.recv(100).startswith(b"HTTP/1.1 503")
    for each in waiting:
        each.close()
    end = time.monotonic() + 60
    while server.ask("POST", "/predict", body)[0] != 200:
        assert time.monotonic() < end

    # The benchmark counts what it is answered.
    rows = serving.table(server.port, server.process.pid, ["dense"], [2], 0.3, 1, [body])
    assert rows.row_count == 1

    # SIGTERM ends every process.
    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert len(processes) >= 3
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert "Traceback" not in server.said.read_text()


def import_from(folder: Path, name: str) -> Any:
    sys.path.insert(0, str(folder))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(folder))


def test_a_file_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("litserve")
    (tmp_path / "model.xml").write_text("no")
    monkeypatch.setattr(sys, "argv", ["serve.py", str(tmp_path / "model.xml")])
    with pytest.raises(SystemExit) as ended:
        import_from(ROOT / "examples", "serve").main()
    assert ended.value.code == 2
    assert "model.xml" in capsys.readouterr().err.splitlines()[-1]
