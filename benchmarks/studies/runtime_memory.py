"""What a bundle takes in memory on a CPU, after loading and at its peak, and whether that grows with the pictures.

    python benchmarks/studies/runtime_memory.py runs/onnx-int4 --picture 1024x1024 --pictures 1000

One row is the runtime as it is; in each of the others, one of the means that keep its memory small is switched off:
`one chunk` reads the prompt at once, `arena` lets onnxruntime keep what it freed, `heap` lets glibc move the line from
which on blocks are given back. Each is a process of its own, one after the other, measured by the system (`/proc`), so
this needs Linux. Seconds of an answer are CPU seconds, which say most on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SYSTEMS = ("as it is", "one chunk", "arena", "heap")
QUESTION = "Where is the left clock?"
WARM = 50
"""Pictures after which memory has to be flat."""


def memory() -> dict[str, float]:
    """This process's memory in MB: resident, of it not backed by files, and the most that was resident."""
    told = {}
    for path, names in (("smaps_rollup", ("Rss", "Anonymous")), ("status", ("VmHWM",))):
        for line in Path("/proc/self", path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name in names:
                told[name] = int(value.split()[0]) * 1024 / 1e6
    return {"resident_mb": told["Rss"], "anonymous_mb": told["Anonymous"], "peak_mb": told["VmHWM"]}


def load(system: str, bundle: Path, threads: int) -> Any:
    """The session of a bundle, with one thing switched off where the system says so."""
    from edgetune_runtime import Session
    from edgetune_runtime.backends.onnx import engine

    if system == "one chunk":
        engine.PREFILL_CHUNK = 1 << 30
    if system == "arena":
        import onnxruntime

        options: Any = onnxruntime.SessionOptions
        options.enable_cpu_mem_arena = property(lambda self: True, lambda self, value: None)
    return Session.load(bundle, threads=threads, cached_images=0)


def random_pictures(count: int, most: tuple[int, int]) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Pictures of mixed sizes, the first of them the largest."""
    generator = np.random.default_rng(0)
    for number in range(count):
        width, height = (side if not number else int(generator.integers(side // 8, side + 1)) for side in most)
        yield generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def work(options: argparse.Namespace, picture: tuple[int, int]) -> dict[str, Any]:
    """Load, answer about the largest picture again and again, then about pictures of mixed sizes."""
    from edgetune_runtime.timing import process_age

    started = time.perf_counter()
    session = load(options.work, options.bundle, options.threads)
    row: dict[str, Any] = {"system": options.work, "load_s": time.perf_counter() - started, "loaded": memory()}

    def answer(image: Any) -> float:
        before = time.process_time()
        session.ask(image, QUESTION, max_new_tokens=options.tokens)
        return time.process_time() - before

    largest = next(random_pictures(1, picture))
    seconds = [answer(largest)]
    row["cold_start_s"] = process_age()
    seconds += [answer(largest) for _ in range(options.rounds - 1)]
    row |= {"cpu_s": statistics.median(seconds), "answered": memory(), "residents_mb": []}
    for image in random_pictures(options.pictures, picture):
        answer(image)
        row["residents_mb"].append(memory()["resident_mb"])
        if (done := len(row["residents_mb"])) % WARM == 0:
            print(f"{done} pictures: {row['residents_mb'][-1]:.0f} MB resident", file=sys.stderr, flush=True)
    return row


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All systems; many pictures by the first alone."""
    rows = []
    for number, system in enumerate(SYSTEMS[: options.systems]):
        # With a setting of its own glibc is left alone, and this one is its default.
        tuned = {"GLIBC_TUNABLES": "glibc.malloc.check=0"} if system == "heap" else {}
        command = [sys.executable, __file__, str(options.bundle), "--work", system, "--picture", options.picture]
        numbers = {"threads": options.threads, "rounds": options.rounds, "tokens": options.tokens}
        numbers["pictures"] = 0 if number else options.pictures
        words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
        done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=True, env=os.environ | tuned)
        rows.append(json.loads(done.stdout))
    size = sum(path.stat().st_size for path in options.bundle.rglob("*") if path.is_file()) / 1e6
    return {"bundle_mb": size, "rows": rows}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle that onnxruntime runs")
    parser.add_argument("--picture", default="1024x1024", help="width and height of the largest picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="answers about the largest picture")
    parser.add_argument("--tokens", type=int, default=16, help="longest answer; one more is a few hundred kilobytes")
    parser.add_argument("--pictures", type=int, default=0, help="then this many pictures of mixed sizes")
    parser.add_argument("--systems", type=int, default=len(SYSTEMS), help="rows to measure, from the first on")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--work", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    width, height = map(int, options.picture.split("x"))
    if options.work:
        print(json.dumps(work(options, (width, height))))
        return
    found = measure(options)
    print("| | load, s | resident, MB | peak with answers, MB | CPU seconds of an answer |\n|---|---|---|---|---|")
    for row in found["rows"]:
        loaded, answered = row["loaded"]["resident_mb"], row["answered"]["peak_mb"]
        print(f"| {row['system']} | {row['load_s']:.2f} | {loaded:.0f} | {answered:.0f} | {row['cpu_s']:.2f} |")
    ours, size = found["rows"][0], found["bundle_mb"]
    print(f"\nbundle {size:.0f} MB, 1.3 of it and 400 MB: {1.3 * size + 400:.0f} MB")
    print(f"cold start {ours['cold_start_s']:.2f} s")
    if len(over := ours["residents_mb"]) > WARM:
        print(f"resident after {WARM} pictures {over[WARM - 1]:.0f} MB, at most {max(over[WARM:]):.0f} MB later")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
