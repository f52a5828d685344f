"""The page, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from served import Asked, Server

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playing:
        options = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        running = playing.chromium.launch(executable_path=CHROMIUM, args=QUIET + options)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """The page in a window, which fails the test where a script failed or something was asked of another host."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    home = f"http://127.0.0.1:{server.port}/"
    foreign = ("http:", "https:", "ws:")
    opened.on(
        "request",
        lambda asked: wrong.append(asked.url) if asked.url.startswith(foreign) and home not in asked.url else None,
    )
    opened.goto(home)
    yield opened
    opened.close()
    assert not wrong


def choose(page: Any, picture: bytes) -> None:
    page.set_input_files("#file", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": picture})
    page.wait_for_selector("#canvas:visible")


def add(page: Any, phrase: str) -> None:
    page.fill("#phrase", phrase)
    page.press("#phrase", "Enter")


def found(page: Any) -> list[str]:
    """Wait for the answer; the lines that it is told in."""
    page.click("#find")
    page.locator("#status").filter(has_text=re.compile("box(es)? for")).wait_for()
    return [str(each) for each in page.locator("#found li").all_inner_texts()]


def test_a_picture_and_phrases_give_boxes_that_are_drawn(page: Any, server: Server, asked: list[Asked]) -> None:
    picture, phrases = asked[1].picture, [each.phrase for each in asked[1:4]]
    choose(page, picture)
    drawn = "document.getElementById('canvas').toDataURL()"
    before = page.evaluate(drawn)
    for phrase in phrases:
        add(page, phrase)
    told, lines = server.connect().detect(picture, phrases).json, found(page)
    assert len(lines) == 3
    for line, result in zip(lines, told["results"], strict=True):
        assert line.startswith(result["phrase"])
        assert line.count("x ") >= len(result["detections"])
        for each in result["detections"]:
            x1, y1, x2, y2 = (f"{value:.0f}" for value in each["box"])
            assert f"x {x1} to {x2}, y {y1} to {y2}, score {each['score']:.2f}" in line
    assert page.evaluate(drawn) != before
    if folder := os.environ.get("EDGETUNE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "page.png")
    page.locator(".chip button").first.click()
    assert page.locator(".chip").count() == 2


def test_the_same_request_is_shown_for_shell_and_python(page: Any, server: Server, asked: list[Asked]) -> None:
    add(page, "the owl's cup")
    curl, python = (page.inner_text(f"#{name}") for name in ("curl", "python"))
    assert f"curl http://127.0.0.1:{server.port}/v1/detect" in curl and "-F 'phrase=the owl'\\''s cup'" in curl
    assert '"phrase": ["the owl\'s cup"]' in python
    compile(python, "shown", "exec")


def test_words_are_shown_as_words(page: Any, asked: list[Asked]) -> None:
    choose(page, asked[0].picture)
    add(page, "<img src=x onerror=document.title='bad'>")
    found(page)
    assert page.title() == "edgetune" and page.locator("main img").count() == 0


def test_the_camera_gives_a_picture(page: Any) -> None:
    page.click("#camera")
    page.wait_for_selector("#video:visible")
    page.click("text=Take the picture")
    page.wait_for_selector("#canvas:visible")
    add(page, "the cup")
    assert len(found(page)) == 1


def test_a_file_that_is_no_picture_is_told(page: Any) -> None:
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
    page.wait_for_selector("#status.bad")


def test_a_phone_and_a_dark_room(browser: Any, server: Server, asked: list[Asked]) -> None:
    options = {"viewport": {"width": 375, "height": 700}, "color_scheme": "dark", "has_touch": True}
    page = browser.new_page(**options)
    page.goto(f"http://127.0.0.1:{server.port}/")
    choose(page, asked[0].picture)
    add(page, asked[0].phrase)
    found(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(each) for each in back.removeprefix("rgb(").removesuffix(")").split(", ")) < 64
    if folder := os.environ.get("EDGETUNE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "phone.png")
    page.close()


def test_the_api_is_explained(browser: Any, server: Server) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    page.wait_for_selector("text=POST /v1/detect")
    text = page.inner_text("body")
    for path in ("/v1/point", "/v1/ask", "/v1/chat/completions", "/v1/models", "/metrics"):
        assert path in text
    page.close()


def test_a_key_is_asked_for(browser: Any, tiny_bundle: Path, asked: list[Asked]) -> None:
    with Server(f"tiny={tiny_bundle}", "--api-key", "open") as running:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{running.port}/")
        page.wait_for_selector("#key:visible")
        page.fill("#key", "open")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        choose(page, asked[0].picture)
        add(page, asked[0].phrase)
        assert len(found(page)) == 1
        page.close()
