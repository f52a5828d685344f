"""How fresh boxes of a camera are: `edgetune-run watch` for an hour, and beside a plain loop around OpenCV.

A GStreamer RTSP server plays a video at 30 frames a second, each frame of which tells its own number in a row of
black and white squares, so that both ways of watching are timed by the frames themselves. A frame's age is how much
later it was answered than it was due, by the least late frame of the same turn: a delay that all frames have, such as
the network's, is not seen.

    python watch_study.py loop --bundle BUNDLE --picture PICTURE --phrase PHRASE [--seconds 60]
    python watch_study.py hour --bundle BUNDLE --picture PICTURE --phrase PHRASE [--minutes 60] [--speed 1]

`loop` lets the plain loop (`cv2.VideoCapture`, read, ask, again) and `Watcher` watch the same camera one after the
other, and again. `hour` watches as many frames as an hour has, `--speed` times as fast, and looks at memory, at ages,
and whether a frame was analysed twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetune_runtime.live.sources import Paced, source_of
from edgetune_runtime.live.watch import Watcher
from edgetune_runtime.session import Session

RATE = 30
BITS, SQUARE = 18, 8
CAMERA = Path(__file__).parent / "rtsp_camera.py"
PYTHON = "/usr/bin/python3"


def numbered(scene: Image.Image, number: int) -> Image.Image:
    """A scene with a frame's number above it, as squares of 8 pixels."""
    canvas = np.asarray(scene).copy()
    bits = [number >> bit & 1 for bit in range(BITS)]
    canvas[:SQUARE, : BITS * SQUARE] = np.repeat(bits, SQUARE)[None, :, None] * 255
    return Image.fromarray(canvas)


def number_of(picture: npt.NDArray[Any]) -> int:
    """The number in a picture [H, W, 3]."""
    row = picture[SQUARE // 2, SQUARE // 2 : BITS * SQUARE : SQUARE].mean(axis=1)
    return sum(1 << bit for bit, value in enumerate(row) if value > 127)


def make_video(path: Path, picture: Path, frames: int) -> None:
    """Write a video of frames that tell their numbers."""
    scene = Image.open(picture).convert("RGB")
    scene = scene.crop((0, 0, scene.width // 2 * 2, scene.height // 2 * 2))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.options = {"crf": "18", "g": "30", "preset": "ultrafast", "tune": "zerolatency"}
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.asarray(numbered(scene, number)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@contextmanager
def camera(video: Path) -> Iterator[str]:
    """The address of a server that plays a video once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([PYTHON, str(CAMERA), str(port), str(video)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield f"rtsp://127.0.0.1:{port}/gate"
    finally:
        process.kill()
        process.communicate()


class Ages:
    """How old frames are when their answers come; the frame that came soonest tells when the server began."""

    def __init__(self) -> None:
        self._answers: list[tuple[int, float]] = []
        self._began = float("inf")

    def arrived(self, number: int, moment: float) -> None:
        """A frame was read."""
        self._began = min(self._began, moment - number / RATE)

    def answered(self, number: int) -> None:
        """A frame was answered just now."""
        self._answers.append((number, time.monotonic()))

    def figures(self, seconds: float) -> dict[str, float]:
        """Answers a second, and percentiles of the ages in milliseconds."""
        ages = sorted(1000 * (moment - self._began - number / RATE) for number, moment in self._answers)
        told = {"answers a second": len(ages) / seconds}
        return told | {f"age p{share} ms": ages[len(ages) * share // 100] for share in (50, 95)} | {"last ms": ages[-1]}


def plain_loop(session: Session, address: str, phrase: str, seconds: float) -> dict[str, float]:
    """What one writes first: read a frame, ask about it, read the next."""
    ages, until = Ages(), time.monotonic() + seconds
    capture = cv2.VideoCapture(address)
    while time.monotonic() < until:
        there, frame = capture.read()
        if not there:
            break
        number = number_of(frame)
        ages.arrived(number, time.monotonic())
        session.ground(frame[..., ::-1], phrase)
        ages.answered(number)
    capture.release()
    return ages.figures(seconds)


def watched(session: Session, address: str, phrase: str, seconds: float, *, track: bool) -> dict[str, float]:
    """The same by `Watcher`."""
    ages, until = Ages(), time.monotonic() + seconds
    watcher = Watcher(session, source_of(address), [phrase], track=track)
    for observation in watcher:
        number = number_of(np.asarray(observation.frame.picture.rgb()))
        ages.arrived(number, observation.frame.captured)
        if observation.answered:
            ages.answered(number)
        if time.monotonic() > until:
            break
    watcher.stop()
    return ages.figures(seconds)


def loop(options: argparse.Namespace, work: Path) -> None:
    """Print a table of both ways, medians of the rounds."""
    make_video(work / "camera.mp4", options.picture, int((options.seconds + 10) * RATE))
    rows: dict[str, list[dict[str, float]]] = {"cv2.VideoCapture": [], "watch": [], "watch --track flow": []}
    with Session.load(options.bundle, threads=options.threads, cached_images=0) as session:
        session.warm_up()
        for _ in range(options.rounds):
            for name, found in rows.items():
                with camera(work / "camera.mp4") as address:
                    if name == "cv2.VideoCapture":
                        found.append(plain_loop(session, address, options.phrase, options.seconds))
                    else:
                        track = name.endswith("flow")
                        found.append(watched(session, address, options.phrase, options.seconds, track=track))
    keys = list(rows["watch"][0])
    print("| | " + " | ".join(keys) + " |\n|---|" + "---|" * len(keys))
    for name, found in rows.items():
        print(
            f"| {name} | " + " | ".join(f"{statistics.median(each[key] for each in found):.1f}" for key in keys) + " |"
        )


def resident() -> float:
    """Memory of this process now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def hour(options: argparse.Namespace, work: Path) -> None:
    """Watch an hour's frames and print what was seen."""
    make_video(work / "hour.mp4", options.picture, int(options.minutes * 60 * RATE))
    source = Paced(source_of(str(work / "hour.mp4")), speed=options.speed)
    numbers: list[int] = []
    memory: list[tuple[float, float]] = []
    late, costs, carried = [], [], []
    with Session.load(options.bundle, threads=options.threads, cached_images=0) as session:
        session.warm_up()
        watcher = Watcher(session, source, [options.phrase], track=True)
        for observation in watcher:
            if observation.answered:
                numbers.append(number_of(np.asarray(observation.frame.picture.rgb())))
                late.append(observation.delay)
                costs.append(observation.seconds)
                if len(numbers) % 50 == 0:
                    memory.append((time.monotonic(), resident()))
            else:
                carried += [seen.age for seen in observation.boxes]
    share = 95 * len(late) // 100
    late, costs = sorted(late), sorted(costs)
    settled = [value for _, value in memory[len(memory) // 10 :]]
    told = watcher.figures.to_dict() | {
        "analysed twice": len(numbers) - len(set(numbers)),
        "out of order": sum(later < earlier for earlier, later in itertools.pairwise(numbers)),
        "age p95 ms": round(1000 * late[share], 1),
        "tracked age p95 ms": round(1000 * sorted(carried)[95 * len(carried) // 100], 1) if carried else None,
        "answer p95 ms": round(1000 * costs[share], 1),
        "frame ms": round(1000 / RATE / options.speed, 1),
        "memory MB": [round(settled[0], 1), round(max(settled), 1), round(settled[-1], 1)] if settled else [],
    }
    print(json.dumps(told))
    if late[share] > costs[share] + 1 / RATE / options.speed or told["analysed twice"] or told["out of order"]:
        sys.exit("error: a bar was missed")


def main() -> None:
    """Run one of the studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("loop", "hour"))
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--picture", type=Path, required=True)
    parser.add_argument("--phrase", required=True)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each turn of a loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--speed", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        {"loop": loop, "hour": hour}[options.study](options, Path(work))


if __name__ == "__main__":
    main()
