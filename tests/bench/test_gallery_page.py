"""The page is valid, complete and alone: it fetches nothing."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from edgetune_bench.gallery import Cell, Sample, contact_sheet, html_page

_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Collects elements and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def sample(phrase: str = "the <left> clock & co") -> Sample:
    cells = [
        Cell("truth", "1 box", Image.new("RGB", (64, 48), "red")),
        Cell("base", "IoU 0.10", Image.new("RGB", (64, 48), "green"), right=False),
        Cell('int4 "q"', "IoU 0.80", Image.new("RGB", (64, 48), "blue"), right=True),
    ]
    return Sample(phrase, cells)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def page() -> str:
    table = [{"row": "a<b", "Acc@0.5": "91.5"}, {"row": "c", "Acc@0.5": "-"}]
    return html_page("Boxes", intro=["Before & after"], tables=[table], samples=[sample(), sample("the owl")])


def test_the_page_nests_and_shows_everything() -> None:
    reader = read(page())
    assert page().startswith("<!doctype html>")
    assert reader.seen.count("img") == 6
    assert reader.seen.count("tr") == 3
    text = "".join(reader.texts)
    for expected in ("Boxes", "Before & after", "the <left> clock & co", "a<b", "91.5", "IoU 0.80"):
        assert expected in text


def test_the_page_fetches_nothing() -> None:
    reader = read(page())
    assert not {"script", "link", "iframe", "object", "embed"} & set(reader.seen)
    fetched = [value for _, name, value in reader.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert fetched
    assert all(value.startswith("data:image/jpeg;base64,") for value in fetched)
    assert "url(" not in page()
    assert "@import" not in page()


def test_the_embedded_pictures_decode_to_the_cells() -> None:
    sources = [value for _, name, value in read(page()).attributes if name == "src"]
    colours = []
    for source in sources[:3]:
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.size == (64, 48)
        colours.append(int(np.asarray(image).reshape(-1, 3).mean(axis=0).argmax()))
    assert colours == [0, 1, 2]


def test_the_contact_sheet_holds_every_cell_unscaled() -> None:
    sheet = np.asarray(contact_sheet([sample(), sample()]).convert("RGB")).reshape(-1, 3)
    for colour in ("red", "blue"):
        expected = np.array(Image.new("RGB", (1, 1), colour)).reshape(3)
        assert (sheet == expected).all(axis=1).sum() == 2 * 64 * 48
