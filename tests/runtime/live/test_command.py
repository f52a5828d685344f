"""`edgetune-run watch` as a program."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgetune_runtime.cli import main
from edgetune_runtime.session import Session
from live import moving, shift, video

from .conftest import Scene


@pytest.fixture(scope="module")
def clip(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("clip") / "moving.mp4", moving(scene.picture, 45))


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_video_becomes_lines_a_video_an_mcap_file_and_figures(
    clip: Path, scene: Scene, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--video", str(tmp_path / "out.mp4"), "--mcap", str(tmp_path / "out.mcap")]
    words = ["watch", str(clip), scene.phrase, "--bundle", str(tiny_bundle), "--threads", "1", "--every", "0.5"]
    assert main([*words, "--track", "flow", *outputs]) == 0
    out, err = capsys.readouterr()
    told = lines(out)
    assert [line["frame"] for line in told] == list(range(45))
    assert [line["frame"] for line in told if line["answered"]] == [0, 15, 30]
    for line in told:
        (box,) = line["boxes"]
        assert line["image"] == {"width": scene.picture.width, "height": scene.picture.height}
        x, y = shift(line["frame"])
        expected = [scene.box[0] + x, scene.box[1] + y, scene.box[2] + x, scene.box[3] + y]
        assert box["box"] == pytest.approx(expected, abs=8)
    (figures,) = lines(err)
    assert (figures["frames"], figures["answered"], figures["tracked"]) == (45, 3, 42)
    assert (tmp_path / "out.mp4").stat().st_size > 1000 and (tmp_path / "out.mcap").stat().st_size > 1000


def test_events_take_the_place_of_frames(
    scene: Scene, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    empty = Image.new("RGB", scene.picture.size, (90, 90, 90))
    for number, picture in enumerate([scene.picture, scene.picture, empty, empty, scene.picture]):
        picture.save(frames / f"{number}.png")
    with Session.load(tiny_bundle, threads=1) as session:
        gone = not session.ground(empty, scene.phrase)
    words = ["watch", str(frames), scene.phrase, "--bundle", str(tiny_bundle), "--threads", "1"]
    assert main([*words, "--when", "found,lost", "--snapshots", str(tmp_path / "seen")]) == 0
    told = [(line["event"], line["frame"]) for line in lines(capsys.readouterr().out)]
    assert told == ([("found", 0), ("lost", 2), ("found", 4)] if gone else [("found", 0)])
    assert len(list((tmp_path / "seen").glob("*.jpg"))) == len(told)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nowhere.mp4", "the owl"], 2, "nowhere.mp4: no such camera, file or folder"),
        (["/dev/video99", "the owl"], 2, "/dev/video99: cannot be opened"),
        (["{clip}", " "], 2, "the phrase is empty"),
        (["{clip}", "the owl", "--video", "out.gif"], 2, "out.gif: cannot write this kind of file"),
        (["{clip}", "the owl", "--mqtt", "mqtt://127.0.0.1:9/gate"], 2, "cannot connect"),
        (["{clip}", "the owl", "--when", "lost", "--webhook", "gopher://x"], 2, "no address for a webhook"),
        (["{clip}", "the owl", "--http", "here"], 2, "here: no port"),
        (["{clip}", "the owl", "--video", "{clip}"], 2, "exists already"),
        (["{clip}", "the owl", "--webhook", "http://x/"], 2, "--webhook needs --when"),
        (["{clip}", "the owl", "--api-key", "x"], 2, "--api-key needs --http"),
        (["{clip}", "the owl", "--wait"], 2, "--wait is not for this kind of source"),
        (["0", "the owl", "--realtime"], 2, "--realtime is not for this kind of source"),
        (["{clip}", "the owl", "--size", "640x480"], 2, "this kind of source has no size"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    clip: Path, tiny_bundle: Path, words: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(clip=clip) for word in words]
    assert main(["watch", *given, "--bundle", str(tiny_bundle), "--threads", "1"]) == code
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert not out and len(errors) == 1 and told in errors[0]


def test_without_a_bundle_it_says_how_to_name_one(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(clip), "the owl"]) == 2
    assert "EDGETUNE_BUNDLE" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--when", "seen"], ["--every", "-1"], ["--size", "640"], ["--moved-by", "0"]])
def test_options_that_make_no_sense_are_refused(clip: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["watch", str(clip), "the owl", *words])
    assert caught.value.code == 2


@contextmanager
def watching_page(clip: Path, scene: Scene, bundle: Path, *words: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A watch of a folder that goes on for a while, and the port of its page."""
    command = [sys.executable, "-m", "edgetune_runtime.cli", "watch", str(clip), scene.phrase, "--realtime"]
    options = ["--bundle", str(bundle), "--threads", "1", "--http", "0", "--quiet", *words]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=os.environ | {"LANG": "C"})
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        while "live at" not in line:
            assert line, "the watch has ended"
            line = process.stderr.readline()
        yield int(line.rpartition(":")[2].partition("/")[0]), process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def long_clip(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("clip") / "long.mp4", moving(scene.picture, 1800))


def test_the_page_has_pictures_and_boxes_and_ends_with_the_watch(
    long_clip: Path, scene: Scene, tiny_bundle: Path
) -> None:
    pytest.importorskip("uvicorn")
    with watching_page(long_clip, scene, tiny_bundle, "--api-key", "k3y") as (port, process):
        key = {"authorization": "Bearer k3y"}
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        page.request("GET", "/live")
        assert b"live/stream.mjpg" in page.getresponse().read()
        page.request("GET", "/live/stream.mjpg")
        refused = page.getresponse()
        assert refused.status == 401 and refused.read()
        page.request("GET", "/live/stream.mjpg", headers=key)
        stream = page.getresponse()
        assert stream.headers.get_content_type() == "multipart/x-mixed-replace"
        for _ in range(3):
            assert stream.readline() == b"--frame\r\n"
            head = {}
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.decode().partition(": ")
                head[name.lower()] = value
            picture = Image.open(io.BytesIO(stream.read(int(head["content-length"]))))
            assert picture.size == scene.picture.size and stream.readline() == b"\r\n"
        boxes = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        boxes.request("GET", "/live/boxes", headers=key)
        events = boxes.getresponse()
        told = json.loads(events.readline().removeprefix(b"data: "))
        assert list(told["phrases"]) == [scene.phrase]
        api = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        api.request("GET", "/v1/models", headers=key)
        assert json.loads(api.getresponse().read())["data"][0]["id"] == tiny_bundle.resolve().name
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        assert stream.read().endswith(b"--frame--\r\n")


def test_the_page_in_a_browser(long_clip: Path, scene: Scene, tiny_bundle: Path, tmp_path: Path) -> None:
    """The picture is shown, the table has its rows, and nothing is fetched from elsewhere."""
    pytest.importorskip("uvicorn")
    playwright = pytest.importorskip("playwright.sync_api")
    from shutil import which

    if which("chromium") is None:
        pytest.skip("needs chromium")
    keyed = ("--api-key", "k3y")
    with watching_page(long_clip, scene, tiny_bundle, *keyed) as (port, _), playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        errors: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/live")
        page.wait_for_selector("#key", timeout=60_000)
        assert errors and all("401" in error for error in errors)  # the browser tells of what was refused
        errors.clear()
        page.fill("#key", "k3y")
        page.click("#keyed button")
        until = time.monotonic() + 60
        while not page.evaluate("document.getElementById('frame').naturalWidth") and time.monotonic() < until:
            page.wait_for_timeout(50)
        page.wait_for_selector("#boxes tr", timeout=60_000)
        assert page.evaluate("document.getElementById('frame').naturalWidth") == scene.picture.width
        assert scene.phrase in page.inner_text("#boxes")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert not errors
        assert all(url.startswith((f"http://127.0.0.1:{port}/", "blob:")) for url in asked)
        browser.close()
