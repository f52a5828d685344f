"""What a server adds to a session, whether answers stay right under load, and whether its memory grows.

    python benchmarks/studies/serve_load.py runs/onnx-int4 --data test.jsonl --requests 2000 --pictures 10000

Three measurements of `edgetune-run serve` as a process of its own, with one session and the records' pictures:

    overhead   one client over one kept connection, in turns with a session in this process that answers the same
    load       the same requests from 1, 8 and 32 clients at a time, mixed: boxes, points, questions and chat; each
               answer is compared with the session's
    memory     different pictures of mixed sizes, and the server's resident memory as they pass

Run it on a quiet machine; the session and the server never compute at the same time.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLIENTS = (1, 8, 32)
"""Numbers of clients that ask at a time."""
WARM = 200
"""Pictures after which memory has to be flat."""
STEPS = 50
"""How often memory is told while pictures pass."""

Request = tuple[str, dict[str, Any]]
"""A path, and the body of a request."""


@contextmanager
def serving(bundle: Path, threads: int) -> Iterator[tuple[int, int]]:
    """A server's port and process while it runs."""
    command = [sys.executable, "-m", "edgetune_runtime.cli", "serve", f"it={bundle}", "--port", "0", "--queue", "64"]
    words = ["--no-access-log", "--threads", str(threads)]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://[^ ]*:(\d+)", process.stdout.readline())
        if found is None:
            sys.exit("error: the server did not start, see above")
        try:
            yield int(found[1]), process.pid
        finally:
            process.terminate()


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, request: Request) -> dict[str, Any]:
        """The response.

        Raises:
            SystemExit: it is none.
        """
        path, body = request
        self._http.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = self._http.getresponse()
        told: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            sys.exit(f"error: {path} is answered with {response.status}: {told}")
        return told


def requests_of(records: Path, count: int) -> list[Request]:
    """Requests about the records' pictures: boxes for the most part, and every other kind."""
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    made: list[Request] = []
    for number in range(count):
        line = lines[number % len(lines)]
        image = base64.b64encode((records.parent / line["image"]).read_bytes()).decode()
        phrase = line.get("text") or "the cup"
        if "question" in line:
            made.append(("/v1/ask", {"image": image, "question": line["question"]}))
        elif number % 7 == 3:
            made.append(("/v1/point", {"image": image, "phrase": phrase}))
        elif number % 7 == 5:
            url = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}}
            content = [url, {"type": "text", "text": phrase}]
            made.append(("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}))
        else:
            made.append(("/v1/detect", {"image": image, "phrase": phrase}))
    return made


def expected(session: Any, request: Request) -> Any:
    """What the session answers to a request."""
    path, body = request
    if path == "/v1/chat/completions":
        url, text = body["messages"][0]["content"]
        stream = session.stream(base64.b64decode(url["image_url"]["url"].partition(",")[2]), text["text"])
        return "".join(stream)
    picture = base64.b64decode(body["image"])
    if path == "/v1/ask":
        return session.ask(picture, body["question"])
    boxes = [found.box for found in session.ground(picture, body["phrase"])]
    return (
        [[(x1 + x2) / 2, (y1 + y2) / 2] for x1, y1, x2, y2 in boxes] if path == "/v1/point" else list(map(list, boxes))
    )


def said(path: str, told: dict[str, Any]) -> Any:
    """The part of a response that a session tells as well."""
    if path == "/v1/chat/completions":
        return told["choices"][0]["message"]["content"]
    if path == "/v1/ask":
        return told["answer"]
    kind, place = ("points", "point") if path == "/v1/point" else ("detections", "box")
    return [each[place] for each in told[kind]]


def overhead(session: Any, port: int, requests: Sequence[Request], rounds: int) -> dict[str, float]:
    """Milliseconds of an answer with a server and without, and by how much the former are more, request by request."""
    grounding = [request for request in requests if request[0] == "/v1/detect"][:rounds]
    client, alone, served = Client(port), [], []
    for path, body in grounding[:3]:
        client.ask((path, body))
        expected(session, (path, body))
    for path, body in grounding:
        picture = base64.b64decode(body["image"])
        began = time.perf_counter()
        session.ground(picture, body["phrase"])
        between = time.perf_counter()
        client.ask((path, body))
        alone.append(between - began)
        served.append(time.perf_counter() - between)
    more = [after - before for before, after in zip(alone, served, strict=True)]
    told = {"session": alone, "server": served, "overhead": more}
    return {f"{name}_ms": 1000 * statistics.median(values) for name, values in told.items()} | {"requests": len(more)}


def load(port: int, requests: Sequence[Request], answers: Sequence[Any], clients: int) -> dict[str, float]:
    """Seconds of all requests from so many clients; how many answers are not the session's."""
    connections = [Client(port) for _ in range(clients)]
    seconds: list[float] = []

    def share(number: int) -> list[bool]:
        same = []
        for index in range(number, len(requests), clients):
            began = time.perf_counter()
            told = connections[number].ask(requests[index])
            seconds.append(time.perf_counter() - began)
            same.append(said(requests[index][0], told) == answers[index])
        return same

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        same = [each for part in pool.map(share, range(clients)) for each in part]
    spent = time.perf_counter() - began
    p50, p99 = np.percentile(seconds, (50, 99))
    return {
        "clients": clients,
        "requests": len(same),
        "wrong": same.count(False),
        "per_second": len(same) / spent,
        "p50_ms": 1000 * float(p50),
        "p99_ms": 1000 * float(p99),
    }


def memory(port: int, pid: int, count: int) -> list[float]:
    """Resident MB (10^6 bytes) of the server, after each of `count` different pictures."""
    generator, client, found = np.random.default_rng(0), Client(port), []
    for number in range(count):
        width, height = (int(side) for side in generator.integers(40, 480, 2))
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        held = io.BytesIO()
        Image.fromarray(coarse).resize((width, height)).save(held, "PNG")
        image = base64.b64encode(held.getvalue()).decode()
        client.ask(("/v1/detect", {"image": image, "phrase": "the cup", "max_new_tokens": 4}))
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found.append(pages * 4096 / 1e6)
        if (number + 1) % max(1, count // STEPS) == 0:
            print(f"{number + 1} pictures: {found[-1]:.1f} MB", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--data", type=Path, required=True, help="JSONL file of records to ask about")
    parser.add_argument("--requests", type=int, default=2000, help="for each number of clients")
    parser.add_argument("--rounds", type=int, default=300, help="answers with a server and without")
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    from edgetune_runtime import Session

    asked = requests_of(options.data, options.requests)
    found: dict[str, Any] = {"kinds": dict(Counter(path for path, _ in asked))}
    with Session.load(options.bundle, threads=options.threads, verify=False) as session:
        answers = [expected(session, request) for request in asked]
        with serving(options.bundle, options.threads) as (port, pid):
            found["overhead"] = overhead(session, port, asked, options.rounds)
            found["load"] = [load(port, asked, answers, clients) for clients in CLIENTS]
            found["memory_mb"] = memory(port, pid, options.pictures)
    told = found["overhead"]
    print(
        f"one client, {told['requests']:.0f} requests, medians: session {told['session_ms']:.2f} ms, server "
        f"{told['server_ms']:.2f} ms, difference {told['overhead_ms']:.2f} ms\n"
    )
    print(
        "| clients | requests | not the session's answer | requests/s | p50, ms | p99, ms |\n|---|---|---|---|---|---|"
    )
    for row in found["load"]:
        speed = f"{row['per_second']:.1f} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f}"
        print(f"| {row['clients']} | {row['requests']} | {row['wrong']} | {speed} |")
    if len(resident := found["memory_mb"]) > WARM:
        print(
            f"\nresident after {WARM} pictures {resident[WARM - 1]:.1f} MB, at most {max(resident[WARM:]):.1f} MB later"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
