"""Answers drawn beside the truth: of chosen records, and the worst ones; as an HTML page and as a contact sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgetune_runtime.bench.predictions import GroundPrediction, Prediction, VqaPrediction, grounding
from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.draw import draw_detections
from edgetune_runtime.images.load import load_image

TRUTH, ANSWER = "#00e676", "#ffab00"
"""Colours of boxes, readable on dark and on bright pictures."""
_CELL_SIDE, _WORST_SIDE = 256, 300  # longest side of a drawn picture in pixels, beside others and alone
_FULL, _MAX_GAIN = 160.0, 4.0  # the 99th percentile that dark pictures are lifted to, and by how much at most
_HIT, _NEAR = 0.5, 0.1  # IoU from which a box is right, and from which it is at least about the right thing
_LONGEST_ANSWER = 80  # characters
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


def choose(rows: Sequence[Prediction], count: int) -> list[str]:
    """Sources of up to `count` grounding rows, evenly spaced over the set: a choice that no result can influence."""
    sources = [row.source for row in grounding(rows)]
    if not sources:
        return []
    places = np.linspace(0, len(sources) - 1, min(count, len(sources))).round().astype(int)
    return [sources[place] for place in places]


def samples(answers: Mapping[str, Sequence[Prediction]], sources: Sequence[str]) -> list[Sample]:
    """One sample for each source: its truth, then each model's answer; `answers` is name -> rows, in column order."""
    indexed = {name: {row.source: row for row in grounding(rows)} for name, rows in answers.items()}
    return [_sample({name: rows[source] for name, rows in indexed.items()}) for source in sources]


def _sample(answers: Mapping[str, GroundPrediction]) -> Sample:
    first = next(iter(answers.values()))
    image = load_image(first.image)
    truth = Cell("truth", _count(first.truth), _draw(image, first.truth, TRUTH))
    cells = [Cell(name, _score(row), _draw(image, row.boxes, ANSWER), _right(row)) for name, row in answers.items()]
    return Sample(first.text, [truth, *cells])


def _draw(image: Image.Image, boxes: Sequence[Sequence[float]], color: str) -> Image.Image:
    """The picture with its boxes, reduced to the size of a cell; drawn after reducing, so that lines stay readable."""
    small, scale = reduce(image, _CELL_SIDE)
    return _outline(small, boxes, scale, color)


def reduce(image: Image.Image, longest: int) -> tuple[Image.Image, float]:
    """The picture with sides of at most `longest` pixels, bright enough to be looked at, and what it was scaled by."""
    scale = min(1.0, longest / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return _lighten(image.resize(size, Image.Resampling.LANCZOS)), scale


def _lighten(image: Image.Image) -> Image.Image:
    """A dark picture made bright enough to be looked at; others stay as they are. Models never see this."""
    brightest = float(np.percentile(np.asarray(image), 99))
    gain = min(_FULL / max(brightest, 1.0), _MAX_GAIN)
    return image.point(lambda level: round(level * gain)) if gain > 1 else image


def _right(row: GroundPrediction) -> bool:
    return row.status == "refused" if row.iou is None else row.iou >= _HIT


def _score(row: GroundPrediction) -> str:
    if row.status == "refused":
        return "says it is not there"
    if row.status == "unparsed":
        return "no box in the answer"
    return "a box where nothing is" if row.iou is None else f"IoU {row.iou:.2f}"


def _count(truth: Sequence[object]) -> str:
    return "not in the picture" if not truth else "1 box" if len(truth) == 1 else f"{len(truth)} boxes"


KINDS: Mapping[str, Callable[[GroundPrediction], bool]] = {
    "Another place": lambda row: row.status == "found" and row.iou is not None and row.iou < _NEAR,
    "The place, but not the extent": lambda row: row.status == "found" and _NEAR <= (row.iou or 0) < _HIT,
    "A box where nothing is": lambda row: row.status == "found" and not row.truth,
    "There, but refused": lambda row: row.status == "refused" and bool(row.truth),
    "Neither a box nor a refusal": lambda row: row.status == "unparsed",
}
"""Kinds of errors of grounding answers, in the order of the page, and which answers are of each."""
WRONG_WORDS = "Wrong words"


def sort(rows: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The wrong answers of each kind that has any, worst first.

    Boxes are in the order of IoU and, where that is equal, of falling confidence; words in the order of their accuracy.
    Right are boxes with an IoU from 0.5, refusals of what is absent, and words with an accuracy from 0.5.
    """
    found: dict[str, list[Prediction]] = {kind: [] for kind in (*KINDS, WRONG_WORDS)}
    for row in rows:
        if isinstance(row, VqaPrediction):
            if row.accuracy < _HIT:
                found[WRONG_WORDS].append(row)
            continue
        for kind, holds in KINDS.items():
            if holds(row):
                found[kind].append(row)
    return {kind: sorted(wrong, key=_badness) for kind, wrong in found.items() if wrong}


def choose_worst(rows: Sequence[Prediction], count: int) -> dict[str, list[Prediction]]:
    """The worst `count` answers: each kind in turn gives its next, until there are enough."""
    wrong = sort(rows)
    chosen: dict[str, list[Prediction]] = {kind: [] for kind in wrong}
    for place in range(max(map(len, wrong.values()), default=0)):
        for kind, ordered in wrong.items():
            if place < len(ordered) and sum(map(len, chosen.values())) < count:
                chosen[kind].append(ordered[place])
    return {kind: some for kind, some in chosen.items() if some}


def error_page(name: str, rows: Sequence[Prediction], count: int) -> str:
    """The page of the worst `count` answers, as HTML that fetches nothing."""
    wrong = sort(rows)
    total = sum(map(len, wrong.values()))
    intro = [f"{total} of {len(rows)} answers are wrong; the worst {min(count, total)} are drawn."]
    if grounding(rows):
        intro.append("Green is the target, orange the answer. A box is right from an IoU of 0.5 with its target.")
    table = [{"kind of error": kind, "answers": str(len(some))} for kind, some in wrong.items()]
    samples = [Sample(kind, [_worst_cell(row) for row in some]) for kind, some in choose_worst(rows, count).items()]
    return html_page(f"The worst answers of {name}", intro=intro, tables=[table], samples=samples)


def _badness(row: Prediction) -> tuple[float, float]:
    if isinstance(row, VqaPrediction):
        return (row.accuracy, row.anls)
    return (row.iou or 0.0, -(_confidence(row) or 0.0))


def _confidence(row: GroundPrediction) -> float | None:
    return next(iter(row.scores), None)


def _worst_cell(row: Prediction) -> Cell:
    title = f"{row.text} ({row.source})"
    image, scale = reduce(load_image(row.image), _WORST_SIDE)
    if isinstance(row, VqaPrediction):
        accepted = " or ".join(dict.fromkeys(row.expected))
        return Cell(title, f"{_short(row.raw) or 'nothing'}, not {_short(accepted)}", image, False)
    drawn = _outline(_outline(image, row.truth, scale, TRUTH), row.boxes, scale, ANSWER)
    parts = [f"IoU {row.iou:.2f}"] if row.iou is not None and row.boxes else []
    confidence = _confidence(row)
    parts += [] if confidence is None else [f"confidence {confidence:.2f}"]
    if row.status != "found":
        parts = ["says it is not there" if row.status == "refused" else _short(row.raw) or "says nothing"]
    return Cell(title, ", ".join(parts) or "a box", drawn, False)


def _outline(image: Image.Image, boxes: Sequence[Sequence[float]], scale: float, colour: str) -> Image.Image:
    # What was asked for stands under the picture, so the boxes need no labels.
    found = [Detection((x1 * scale, y1 * scale, x2 * scale, y2 * scale), "") for x1, y1, x2, y2 in boxes]
    return draw_detections(image, found, color=colour)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_ANSWER else text[: _LONGEST_ANSWER - 1] + "…"


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
