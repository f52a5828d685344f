"""A real RTSP camera, which goes away, freezes, and asks for a password."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.live.capture import Capture
from edgetune_runtime.live.observations import Observation
from edgetune_runtime.live.sources import SourceError, source_of
from edgetune_runtime.live.watch import Watcher
from edgetune_runtime.session import Session

from .conftest import Scene

PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).resolve().parents[3] / "benchmarks" / "studies" / "rtsp_camera.py"


def _bindings() -> bool:
    wanted = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        return subprocess.run([PYTHON, "-c", wanted], capture_output=True).returncode == 0
    except OSError:
        return False


pytest.importorskip("av", reason="the extra [live] is not installed")
pytestmark = pytest.mark.skipif(not _bindings(), reason="needs Debian's gir1.2-gst-rtsp-server-1.0 and python3-gi")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def camera(scene: Scene, tmp_path: Path) -> Iterator[tuple[str, Start]]:
    """The address of a camera, and what switches it on."""
    scene.picture.save(tmp_path / "scene.jpg", quality=95)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started: list[subprocess.Popen[str]] = []

    def start(*account: str) -> subprocess.Popen[str]:
        words = [PYTHON, str(SERVER), str(port), str(tmp_path / "scene.jpg"), *account]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield f"127.0.0.1:{port}/gate", start
    for process in started:
        process.kill()
        process.communicate()


def test_an_outage_of_ten_seconds_is_over_five_seconds_after_its_end(
    watching: Session, scene: Scene, camera: tuple[str, Start]
) -> None:
    address, start = camera
    process = start()
    watcher = Watcher(watching, source_of(f"rtsp://{address}"), [scene.phrase], track=True)
    found: list[Observation] = []
    back = [0.0]

    def outage() -> None:
        process.kill()
        time.sleep(10)
        start()
        back[0] = time.monotonic()

    limit = threading.Timer(90, watcher.stop)  # or a camera that does not come back would never end this
    limit.start()
    for observation in watcher:
        found.append(observation)
        if len(found) == 10:
            gone = len(found)
            threading.Thread(target=outage, daemon=True).start()
        if back[0] and observation.answered and observation.frame.captured > back[0]:
            assert observation.frame.captured - back[0] < 5.0
            limit.cancel()
            break
    assert limit.finished.is_set() and back[0], "the camera was not seen again"
    watcher.stop()
    answered = [observation.frame.number for observation in found if observation.answered]
    assert answered == sorted(set(answered)) and len(found) > gone
    assert watcher.figures.losses == 1
    for observation in found:
        for seen in observation.boxes:
            assert sample_iou([seen.box], [scene.box]) > 0.8


def test_a_camera_that_freezes_is_noticed_and_comes_back(camera: tuple[str, Start]) -> None:
    address, start = camera
    process = start()
    with Capture(source_of(f"rtsp://{address}")) as capture:
        assert capture.newest(-1, timeout=20) is not None
        process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 15
        while not capture.losses and time.monotonic() < until:
            time.sleep(0.05)
        assert capture.losses == 1
        process.send_signal(signal.SIGCONT)
        resumed = time.monotonic()
        frame = capture.newest(capture.frames - 1, timeout=20)
        assert frame is not None and frame.captured - resumed < 5.0


def test_a_camera_asks_for_a_password(camera: tuple[str, Start]) -> None:
    address, start = camera
    start("guard", "s3cret")
    with Capture(source_of(f"rtsp://guard:s3cret@{address}")) as capture:
        assert capture.newest(-1, timeout=20) is not None
    with Capture(source_of(f"rtsp://guard:wr0ng@{address}")) as capture, pytest.raises(SourceError) as caught:
        capture.newest(-1, timeout=20)
    assert "wr0ng" not in f"{caught.value} {caught.value.hint}" and "password" in str(caught.value.hint)


def test_a_camera_that_is_off_is_an_error_at_the_start(camera: tuple[str, Start]) -> None:
    with Capture(source_of(f"rtsp://{camera[0]}")) as capture, pytest.raises(SourceError, match="cannot be opened"):
        capture.newest(-1, timeout=20)
