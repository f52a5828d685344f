"""The sheet: one file that fetches nothing, whatever stands in the data, with the boxes where they are written."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from data.broken import Writer
from edgetune_data.check import check, gather
from edgetune_data.check.sheet import sheet

EVIL = "<script>alert('x')</script><img src=https://example.org/a.png>"


class Tags(HTMLParser):
    """Collects the elements of a page and its addresses, and checks that they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(tmp_path: Path, pictures: int = 8) -> str:
    Image.effect_noise((200, 100), 60).convert("RGB").save(tmp_path / "a.png")
    Image.effect_noise((200, 100), 60).convert("RGB").save(tmp_path / "b.png")
    writer = Writer(tmp_path)
    writer.add({"image": "a.png", "text": EVIL, "bbox": [30, 20, 90, 300]})
    writer.add({"image": "b.png", "text": "the object", "bbox": [30, 20, 90, 80], "meta": {"by": EVIL}})
    writer.add({"image": f"{EVIL}.png", "question": "?", "answer": "no"})
    return sheet(check(gather(writer.write("data.jsonl"))), pictures)


def test_it_is_well_formed_and_fetches_and_runs_nothing(tmp_path: Path) -> None:
    tags = Tags()
    text = page(tmp_path)
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "img", "iframe", "object", "form"} & set(tags.names)
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert "url(" not in text and "@import" not in text


def test_boxes_stand_as_they_are_written_on_the_pictures(tmp_path: Path) -> None:
    text = page(tmp_path)
    figures = re.findall(r'<svg viewBox="([^"]+)".*?href="data:image/jpeg;base64,([^"]+)"/>(.*?)</svg>', text)
    assert len(figures) == 2  # the picture that is missing is told in words
    views = {tuple(map(float, view.split())): shapes for view, _, shapes in figures}
    # A quarter of the picture's height is shown below it, as far as the box that leaves it goes.
    assert set(views) == {(0, 0, 200, 125), (0, 0, 200, 100)}
    assert 'x="30" y="20" width="60" height="105"' in views[0, 0, 200, 125]
    assert 'x="30" y="20" width="60" height="60"' in views[0, 0, 200, 100]
    for _, data, _ in figures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (200, 100)


def test_as_many_pictures_as_asked_for(tmp_path: Path) -> None:
    assert page(tmp_path, 0).count("<svg") == 0
    assert "the object" in page(tmp_path, 0)
