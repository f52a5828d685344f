"""The pictures on which quantized rows moved their boxes most, with the baseline's boxes beside."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from edgetune_bench.gallery import reduce
from edgetune_bench.report.html import head, text
from edgetune_bench.report.html import section as wrap
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.predictions import GroundPrediction
from edgetune_runtime.bench.results import Measured, Results
from edgetune_runtime.bench.scores import box_drift
from edgetune_runtime.images.load import load_image

_COUNT = 6
_LONGEST_SIDE = 360
_SAME = 0.995  # from this overlap on, two boxes look the same


def section(results: Results, answers: Answers, pictures: Sequence[str]) -> str:
    """Up to six records, worst first, and each row's answer to them; nothing without a baseline or a moved box.

    Args:
        results: of the measurement.
        answers: predictions by row.
        pictures: the file of each record's picture; none where the pictures that were measured are not here.
    """
    reference = answers.get(results.baseline or "")
    rows = [row for row in results.ran if row.delta]
    if not reference or not rows:
        return ""
    overlaps = {row.name: list(map(box_drift, answers[row.name], reference)) for row in rows}
    chosen = worst(list(overlaps.values()), _COUNT)
    if not chosen:
        return ""
    if not pictures:
        note = "They are not shown: the pictures that were measured are not on this machine, or were changed since."
        return wrap("Worst drift", note, "")
    figures = []
    for number in chosen:
        base = reference[number]
        assert isinstance(base, GroundPrediction)  # only boxes move
        told = [(row, answers[row.name][number], overlaps[row.name][number]) for row in rows]
        own = [(row, said, overlap) for row, said, overlap in told if isinstance(said, GroundPrediction)]
        figures.append(_sample(f"p{number}", load_image(pictures[number]), base, own))
    lead = (
        f"The {len(chosen)} records on which some row's boxes are farthest from the baseline's, worst first. "
        '<span class="key truth">truth</span> <span class="key base">baseline</span> <span class="key own">row</span>; '
        "the figure is the IoU of the row's boxes with the baseline's. Dark pictures are brightened for this page."
    )
    return wrap("Worst drift", lead, "".join(figures))


def worst(overlaps: Sequence[Sequence[float | None]], count: int) -> list[int]:
    """Numbers of up to `count` records with the smallest overlap of any row, smallest first; unmoved ones are left out.

    `overlaps` holds a value for each record of each row, None where there is no box to compare.
    """
    lowest = [
        min((value for value in values if value is not None), default=1.0) for values in zip(*overlaps, strict=True)
    ]
    moved = [number for number, value in enumerate(lowest) if value < _SAME]
    return sorted(moved, key=lambda number: lowest[number])[:count]


def _sample(
    identity: str,
    image: Image.Image,
    reference: GroundPrediction,
    told: Sequence[tuple[Measured, GroundPrediction, float | None]],
) -> str:
    """The picture once, and a drawing for the baseline and each row that refers to it."""
    small, scale = reduce(image, _LONGEST_SIDE)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = small.size
    shared = (
        f'<svg class="store" aria-hidden="true"><defs><image id="{identity}" width="{width}" height="{height}" '
        f'href="{source}"/></defs></svg>'
    )
    canvas = (identity, width, height, scale)
    cells = [_cell(canvas, "baseline", _said(reference), reference.truth, reference.boxes, None, reference)]
    for row, answer, overlap in told:
        both = overlap is not None and answer.boxes and reference.boxes
        score = f"IoU {overlap:.2f}" if both else _said(answer)
        cells.append(_cell(canvas, head(row), score, [], reference.boxes, answer.boxes, reference))
    return f'<article><h3>{text(reference.text)}</h3>\n<div class="cells">{shared}{"".join(cells)}</div></article>\n'


def _cell(
    canvas: tuple[str, int, int, float],
    who: str,
    score: str,
    truth: Sequence[Sequence[float]],
    base: Sequence[Sequence[float]],
    own: Sequence[Sequence[float]] | None,
    reference: GroundPrediction,
) -> str:
    identity, width, height, scale = canvas
    drawn = _boxes(truth, scale, "truth") + _boxes(base, scale, "base") + _boxes(own or [], scale, "own")
    label = f"{reference.text}: {score}"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}">'
        f'<use href="#{identity}"/>{drawn}</svg><figcaption><b>{who}</b> {text(score)}</figcaption></figure>\n'
    )


def _boxes(boxes: Sequence[Sequence[float]], scale: float, kind: str) -> str:
    """Rectangles twice, so that a dark edge sets the bright line off from any picture."""
    parts = []
    for x1, y1, x2, y2 in boxes:
        place = (
            f'x="{x1 * scale:.1f}" y="{y1 * scale:.1f}" '
            f'width="{max(x2 - x1, 0) * scale:.1f}" height="{max(y2 - y1, 0) * scale:.1f}"'
        )
        parts.append(f'<rect class="edge" {place}/><rect class="{kind}" {place}/>')
    return "".join(parts)


def _said(answer: GroundPrediction) -> str:
    if answer.boxes:
        count = len(answer.boxes)
        return "1 box" if count == 1 else f"{count} boxes"
    return "says it is not there" if answer.status == "refused" else "no box in the answer"
