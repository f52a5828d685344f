"""Draw predictions beside the truth: one self-contained HTML page and one PNG contact sheet of the same cells."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_CAPTION = 18
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
section { margin: 1.5rem 0; }
h2 { font-size: 1rem; margin: 0 0 .4rem; }
.cells { display: flex; flex-wrap: wrap; gap: .6rem; }
figure { margin: 0; }
figcaption { font-size: .8rem; max-width: 19rem; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; border-radius: 4px; }
.hit { color: #17803d; color: light-dark(#17803d, #5fd68a); }
.miss { color: #c02626; color: light-dark(#c02626, #ff8078); }
"""


@dataclass(frozen=True)
class Cell:
    """One annotated picture: who answered, how well, and whether that counts as right (None: the truth itself)."""

    who: str
    score: str
    image: Image.Image
    right: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One question and the cells that show its truth and its answers."""

    phrase: str
    cells: Sequence[Cell]


def html_page(
    title: str,
    *,
    intro: Sequence[str],
    tables: Sequence[Sequence[Mapping[str, str]]],
    samples: Sequence[Sample],
) -> str:
    """The page as one string; pictures are embedded, so it opens anywhere and fetches nothing.

    The rows of a table all have the keys of its first row, which become the header.
    """
    paragraphs = "".join(f"<p>{escape(text)}</p>\n" for text in intro)
    sections = "".join(_section(sample) for sample in samples)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{paragraphs}{''.join(map(_table, tables))}{sections}</body>\n</html>\n"
    )


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """The same cells on one picture: a row for each sample, its phrase above it, a caption under each cell."""
    font = ImageFont.load_default(size=13)
    columns = max(len(sample.cells) for sample in samples)
    width = max(cell.image.width for sample in samples for cell in sample.cells)
    heights = [max(cell.image.height for cell in sample.cells) + 2 * _CAPTION + _MARGIN for sample in samples]
    sheet = Image.new("RGB", (_MARGIN + columns * (width + _MARGIN), _MARGIN + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for sample, height in zip(samples, heights, strict=True):
        draw.text((_MARGIN, top), sample.phrase, fill="black", font=font)
        for column, cell in enumerate(sample.cells):
            left = _MARGIN + column * (width + _MARGIN)
            sheet.paste(cell.image, (left, top + _CAPTION))
            colour = {None: "black", True: "#17803d", False: "#c02626"}[cell.right]
            draw.text((left, top + _CAPTION + cell.image.height), f"{cell.who}: {cell.score}", fill=colour, font=font)
        top += height
    return sheet


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(row[name])}</td>" for name in rows[0]) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _section(sample: Sample) -> str:
    figures = "".join(_figure(cell, sample.phrase) for cell in sample.cells)
    return f'<section>\n<h2>{escape(sample.phrase)}</h2>\n<div class="cells">\n{figures}</div>\n</section>\n'


def _figure(cell: Cell, phrase: str) -> str:
    shade = {None: "", True: ' class="hit"', False: ' class="miss"'}[cell.right]
    caption = f"{escape(cell.who)}: <span{shade}>{escape(cell.score)}</span>"
    alt = escape(f"{phrase}, {cell.who}", quote=True)
    size = f'width="{cell.image.width}" height="{cell.image.height}"'
    return f'<figure><img alt="{alt}" {size} src="{_embed(cell.image)}"><figcaption>{caption}</figcaption></figure>\n'


def _embed(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
