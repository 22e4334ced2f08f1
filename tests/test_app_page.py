"""`dynamicvit app` as it is used: a server of its own, a browser, bad files, ten at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from pictures import write_image

if find_spec("gradio") is None:  # its import takes seconds, and only the server needs it
    pytest.skip("the app needs Gradio: pip install '.[app]'", allow_module_level=True)

#: A server in a process of its own; what it answers is in test_app.py.
pytestmark = pytest.mark.extended

CHROMIUM = Path("/usr/bin/chromium")

#: The command in a Python that tells of every other machine that it turns to.
SERVER = """
import sys
def hook(event, args):
    host = {"socket.connect": lambda: args[1], "socket.getaddrinfo": lambda: args[:1]}.get(event)
    host = host and host()
    if isinstance(host, tuple) and host[0] not in ("127.0.0.1", "localhost", None):
        print("turned to", host, file=sys.stderr)
sys.addaudithook(hook)
sys.argv = ["dynamicvit", "app", "--port", "0", "--threads", "1"]
from dynamicvit_command import main
main()
"""


class Server(NamedTuple):
    """A running command: its address, its process, and the folder of all temporary files."""

    url: str
    process: subprocess.Popen[str]
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("temporary")
    about = {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **about},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), process.communicate()
    yield Server(line.split()[0], process, folder)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("images") / "gray.png", 90, (120, 100))


def answer(url: str, file: Path, keep_ratio: float) -> tuple[str, str]:
    """What a client of its own gets for a file: a message and a run."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'
    form = head.encode() + file.read_bytes() + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with urlopen(Request(f"{url}gradio_api/upload", form, kind)) as uploaded:
        [path] = json.load(uploaded)
    said = call(url, path, file.name, keep_ratio)
    assert "event: complete" in said, said
    message, shown, _ = json.loads(said.splitlines()[-1].removeprefix("data: "))[-3:]
    return message, shown


def call(url: str, path: str, name: str, keep_ratio: float) -> str:
    """The events that follow when a client names a file of the server's."""
    file: dict[str, Any] = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, "lookahead", keep_ratio, "keep ratio"]}).encode()
    asked = Request(f"{url}gradio_api/call/upload", body, {"Content-Type": "application/json"})
    with urlopen(asked) as event:
        number = json.load(event)["event_id"]
    with urlopen(f"{url}gradio_api/call/upload/{number}") as events:
        return events.read().decode().strip()


def test_ten_at_once_and_bad_files_between(server: Server, image: Path, tmp_path: Path) -> None:
    """Every one is answered, with its own budget, and whatever the others send."""
    bad = tmp_path / "text.png"
    bad.write_text("text")

    def ask(index: int) -> tuple[str, str]:
        return answer(server.url, bad if index % 5 == 4 else image, 0.3 if index % 2 else 0.9)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    for index, (message, shown) in enumerate(answers):
        if index % 5 == 4:
            assert "text.png can't be read as an image (not an image)" in message.replace(
                "&#x27;", "'"
            )
        else:
            assert not message
            assert f"ρ = {0.3 if index % 2 else 0.9}" in shown
    assert server.process.poll() is None


def test_nothing_is_fetched_or_read_for_a_client(server: Server) -> None:
    for path in (__file__, "https://example.com/a.png", "/etc/passwd"):
        assert "event: error" in call(server.url, path, "a.png", 0.5)
        with pytest.raises(HTTPError, match=r"40[34]"):
            urlopen(f"{server.url}gradio_api/file={path}")
    with urlopen(server.url) as page:
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    with urlopen(f"{server.url}config") as config:
        assert not json.load(config)["analytics_enabled"]


def test_in_a_browser(server: Server, image: Path, tmp_path: Path) -> None:
    """Load, upload, move the budget, another method, a bad file, and on with the next one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there")
    bad = tmp_path / "text.png"
    bad.write_text("text")
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        pictures = page.locator("#result img")

        def wait_for_another(index: int, before: str) -> str:
            playwright.expect(pictures.nth(index)).not_to_have_attribute(
                "src", before, timeout=60_000
            )
            return pictures.nth(index).get_attribute("src")

        first, stage = (pictures.nth(index).get_attribute("src") for index in (0, 1))
        page.set_input_files("input[type=file]", image)
        shown = wait_for_another(0, first)
        stage = wait_for_another(1, stage)
        slider = page.locator("input[type=number]").first
        slider.fill("0.3")
        slider.press("Enter")
        wait_for_another(1, stage)
        result = page.locator("#result")
        playwright.expect(result).to_contain_text("ρ = 0.3", timeout=60_000)
        page.set_input_files("input[type=file]", bad)
        note = page.get_by_role("alert")
        playwright.expect(note).to_contain_text("text.png can't be read", timeout=60_000)
        assert pictures.first.get_attribute("src") == shown, "what was there stays"
        page.locator("#bundled button").nth(1).click()
        wait_for_another(0, shown)
        playwright.expect(note).to_have_count(0)
        page.get_by_label("Method").click()
        page.get_by_role("option", name="class-attention").click()
        playwright.expect(result).to_contain_text("class-attention", timeout=60_000)
        playwright.expect(result).to_contain_text("scores 1")
        assert page.evaluate("document.documentElement.scrollWidth") == 400, "it is too wide"
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((server.url, "data:", "blob:"))]
    assert not elsewhere


def test_it_ends_without_a_trace(server: Server) -> None:
    """Uploads are gone, no other machine was turned to, and the code is that of Ctrl-C."""
    server.process.send_signal(signal.SIGINT)
    _, said = server.process.communicate(timeout=60)
    assert server.process.returncode == 130
    assert "turned to" not in said
    assert said.splitlines()[-1].startswith("dynamicvit: stopped")
    assert not [each for each in server.folder.rglob("*") if each.is_file()]
