"""How many requests examples/serve.py answers, and how fast: the table of docs/serving.md.

::

    python examples/serve.py dense.xml 0.7.xml 0.5.xml &
    python benchmarks/serving.py IMAGES --server PID --budgets dense 0.7 0.5
    python benchmarks/serving.py IMAGES --server PID --budgets dense 0.7 0.5 --soak 600

A client asks again as soon as it has its answer. Budgets take turns, as a machine's speed drifts. A
soak mixes in requests that no service should die of, and watches its memory.
"""

from __future__ import annotations

import argparse
import http.client
import io
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

#: Sends a request's headers and what there is of its body; the answer is read after it.
Attack = Callable[[http.client.HTTPConnection], None]


def photographs(folder: str, count: int) -> list[bytes]:
    """The first files of a folder of class folders."""
    files = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"}
    )
    return [path.read_bytes() for path in files[:count]]


def ask(connection: http.client.HTTPConnection, budget: str, body: bytes) -> tuple[int, float]:
    """The status of an answer, and the seconds that it took."""
    start = time.perf_counter()
    connection.request("POST", f"/predict?budget={budget}", body)
    answer = connection.getresponse()
    answer.read()
    return answer.status, time.perf_counter() - start


def load(
    port: int, budget: str, clients: int, seconds: float, bodies: list[bytes]
) -> list[tuple[int, float]]:
    """What so many clients were answered in so many seconds."""
    end = time.perf_counter() + seconds

    def client(first: int) -> Iterator[tuple[int, float]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        number = first
        while time.perf_counter() < end:
            yield ask(connection, budget, bodies[number % len(bodies)])
            number += clients
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        return [
            each for found in pool.map(lambda n: list(client(n)), range(clients)) for each in found
        ]


def processor_time(server: int) -> float:
    """Seconds that a service's processes have computed."""
    parent = psutil.Process(server)
    spent = [each.cpu_times() for each in [parent, *parent.children(recursive=True)]]
    return sum(each.user + each.system for each in spent)


def table(
    port: int,
    server: int,
    budgets: list[str],
    concurrency: list[int],
    seconds: float,
    rounds: int,
    bodies: list[bytes],
) -> Table:
    """Medians over the rounds; latencies of all answers; processor time, whoever else computes."""
    rates: dict[tuple[int, str], list[float]] = {}
    times: dict[tuple[int, str], list[float]] = {}
    work: dict[tuple[int, str], list[float]] = {}
    refused: Counter[tuple[int, str]] = Counter()
    for _, clients, budget in product(range(rounds), concurrency, budgets):
        before = processor_time(server)
        found = load(port, budget, clients, seconds, bodies)
        computed = processor_time(server) - before
        good = [spent for status, spent in found if status == 200]
        rates.setdefault((clients, budget), []).append(len(good) / seconds)
        times.setdefault((clients, budget), []).extend(good)
        work.setdefault((clients, budget), []).append(1000 * computed / max(1, len(good)))
        refused[clients, budget] += len(found) - len(good)
    rows = Table("clients", "budget", "requests/s", "p50, ms", "p95, ms", "CPU, ms each", "refused")
    for (clients, budget), rate in rates.items():
        key = clients, budget
        p50, p95 = 1000 * np.percentile(times[key], [50, 95])
        spread = " to ".join(f"{value:.1f}" for value in (min(rate), max(rate)))
        each = f"{statistics.median(work[key]):.0f} ({min(work[key]):.0f} to {max(work[key]):.0f})"
        row = f"{statistics.median(rate):.1f} ({spread})", f"{p50:.0f}", f"{p95:.0f}", each
        rows.add_row(str(clients), budget, *row, str(refused[key]))
    return rows


def attacks() -> dict[str, Attack]:
    """Requests that are malformed or huge."""

    def post(body: bytes, path: str = "/predict") -> Attack:
        return lambda connection: connection.request("POST", path, body)

    def stated(connection: http.client.HTTPConnection) -> None:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(10**12))
        connection.endheaders(b"x" * 1000)

    def endless(connection: http.client.HTTPConnection) -> None:
        chunks = (b"x" * 2**16 for _ in range(2**10))
        connection.request("POST", "/predict", chunks, encode_chunked=True)

    return {
        "text": post(b"hello, I am a picture.png"),
        "nothing": post(b""),
        "half a JPEG": post(picture("JPEG", 500, 400)[:3000]),
        "100 megapixels": post(picture("PNG", 10_000, 10_000, "1")),
        "a line": post(picture("PNG", 50_000, 2, "1")),
        "16 bits, 16 megapixels": post(picture("PNG", 4000, 4000, "I;16")),
        "a budget that is not there": post(b"", "/predict?budget=" + "9" * 1000),
        "a terabyte, stated": stated,
        "64 MB in chunks": endless,
        "another path": post(b"", "/nothing"),
        "GET": lambda connection: connection.request("GET", "/predict"),
    }


def picture(kind: str, width: int, height: int, mode: str = "RGB") -> bytes:
    """An image file of one color."""
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


def answer_to(attack: Attack, port: int) -> int:
    """The status, or 0 where the service hung up before it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # answered before all was sent
            attack(connection)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def memory(server: int) -> float:
    """MB of a service's processes that are theirs alone."""
    parent = psutil.Process(server)
    return (
        sum(each.memory_full_info().uss for each in [parent, *parent.children(recursive=True)])
        / 1e6
    )


def soak(
    port: int, server: int, budgets: list[str], seconds: float, clients: int, bodies: list[bytes]
) -> None:
    """Print what every attack is answered while clients ask, and the memory each minute."""
    end = time.perf_counter() + seconds
    statuses: dict[str, Counter[int]] = {}
    asked: Counter[int] = Counter()
    known = attacks()
    print(f"{memory(server):.0f} MB before")
    with ThreadPoolExecutor(1) as pool:
        while (left := end - time.perf_counter()) > 0:
            budget = budgets[sum(asked.values()) % len(budgets)]
            asking = pool.submit(load, port, budget, clients, min(20, left), bodies)
            while not asking.done():
                for name, attack in known.items():
                    statuses.setdefault(name, Counter())[answer_to(attack, port)] += 1
                time.sleep(1)
            asked.update(status for status, _ in asking.result())
            print(f"{seconds - left:.0f} s: {memory(server):.0f} MB, {dict(asked)}", flush=True)
    for name, counts in statuses.items():
        print(name, dict(counts))
    print(f"{memory(server):.0f} MB after")


def main() -> None:
    """Print the table, or soak."""
    parser = argparse.ArgumentParser(description="Load for examples/serve.py.")
    parser.add_argument("images", help="a folder of photographs")
    parser.add_argument("--budgets", nargs="+", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, help="seconds")
    parser.add_argument("--server", type=int, required=True, help="its process")
    given = parser.parse_args()
    bodies = photographs(given.images, 200)
    if given.soak:
        soak(given.port, given.server, given.budgets, given.soak, 8, bodies)
    else:
        length = given.seconds, given.rounds
        found = table(given.port, given.server, given.budgets, given.concurrency, *length, bodies)
        Console(width=120).print(found)


if __name__ == "__main__":
    main()
