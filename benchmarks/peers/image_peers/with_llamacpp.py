"""llama.cpp's server with its own way to read pictures (mtmd): phrases in turn on the slot that keeps the picture.

The model folder holds model.gguf and mmproj.gguf, `tools` is where the server was built.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from answering import Peer, Told, prompt, serve

MARK = "<__media__>"
"""Where the server puts a picture, with the marks of the model's own around it."""
LONGEST = 600
"""Seconds to wait for the server or an answer."""


def load(settings: dict[str, Any]) -> Peer:
    """The server, and how it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model, threads = Path(settings["model"]), str(settings["threads"])
    # One slot, so that phrases find what was read of the picture; no copies of the cache on the side.
    options = {"-m": model / "model.gguf", "--mmproj": model / "mmproj.gguf", "--port": port, "-t": threads}
    options |= {"-tb": threads, "-c": settings["context"], "-np": 1, "--cache-ram": 0}
    words = [str(word) for pair in options.items() for word in pair]
    server = subprocess.Popen(
        [str(Path(settings["tools"]) / "llama-server"), *words, "--no-warmup", "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"LLAMA_MEDIA_MARKER": MARK},
    )
    address = f"http://127.0.0.1:{port}"

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=LONGEST) as reply:
            return json.load(reply)

    def answer(picture: Path, words: list[str], tokens: int) -> Told:
        data = base64.b64encode(picture.read_bytes()).decode()
        counts, generated, times = [], [], []
        for each in words:
            told = ask(
                "/completion",
                {
                    "prompt": {"prompt_string": prompt(settings["chat"], each, MARK), "multimodal_data": [data]},
                    "n_predict": tokens,
                    "ignore_eos": True,
                    "temperature": 0,
                    "samplers": ["top_k"],
                    "top_k": 1,
                    "cache_prompt": True,
                    "return_tokens": True,
                },
            )
            measured = told["timings"]
            counts.append(measured["prompt_n"] + measured.get("cache_n", 0))
            generated.append(measured["predicted_n"])
            times.append((measured["prompt_ms"], measured["predicted_ms"] / max(measured["predicted_n"] - 1, 1)))
        return Told(counts, generated, times[0][0] / 1000, times[0][1] / 1000)

    try:
        _wait(server, address)
    except BaseException:
        server.kill()
        raise

    def close() -> None:
        server.terminate()
        server.wait()

    return Peer(answer, "llama-server, mtmd", pids=[server.pid], close=close)


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    """Until the model is loaded."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server left with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.01)
    raise RuntimeError(f"llama-server did not load in {LONGEST} seconds")


if __name__ == "__main__":
    serve(load)
