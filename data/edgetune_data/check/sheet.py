"""The check as one self-contained HTML page with the worst pictures; it fetches nothing and needs no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from PIL import Image

from edgetune_data.check.findings import RULES, Finding, Numbers, Report, Rule
from edgetune_runtime.errors import ImageError
from edgetune_runtime.images.load import load_image

# Enforced by the browser, whatever a phrase in the data may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONGEST = 480  # pixels of an embedded picture's longer side
_BEYOND = 0.25  # of the picture's sides are shown around it where a box leaves it
_LISTED = 200  # findings of a rule as text; all are in the JSON


def sheet(report: Report, pictures: int) -> str:
    """Return the page.

    Args:
        report: what was found.
        pictures: how many findings of each rule are shown with their picture.
    """
    style = files("edgetune_data.check").joinpath("sheet.css").read_text(encoding="utf-8")
    title = f"data check: {escape(report.data.name)}"
    found = [rule for name, rule in RULES.items() if report.of(name)]
    sections = "".join(_section(rule, report.of(rule.name), pictures) for rule in found)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1>\n<p>{_facts(report)}</p></header>\n"
        f"<main>\n{_summary(report, found)}{sections}</main>\n</body>\n</html>\n"
    )


def _facts(report: Report) -> str:
    return (
        f"{report.records:,} records, {report.images:,} pictures: "
        f'<span class="error">{report.errors:,} errors</span>, '
        f'<span class="warning">{report.warnings:,} warnings</span>'
    )


def _summary(report: Report, found: Sequence[Rule]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="#{rule.name}">{rule.name}</a></th>'
        f'<td><span class="mark {rule.level}">{rule.level}</span></td>'
        f'<td class="count">{len(report.of(rule.name)):,}</td><td class="told">{escape(rule.title)}</td>'
        f'<td class="told">{escape(rule.advice)}</td></tr>\n'
        for rule in found
    )
    skipped = "".join(f"<li><code>{name}</code>: {escape(why)}</li>" for name, why in report.skipped.items())
    table = (
        '<div class="scroll"><table>\n<thead><tr><th>rule</th><th>level</th><th class="count">found</th>'
        '<th class="told">what</th><th class="told">what to do</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )
    nothing = "<p>Nothing is wrong, as far as these rules can tell.</p>\n"
    unasked = f"<details><summary>Not looked for</summary><ul>{skipped}</ul></details>\n" if skipped else ""
    return f"<section>\n<h2>Summary</h2>\n{table if found else nothing}{unasked}</section>\n"


def _section(rule: Rule, findings: Sequence[Finding], pictures: int) -> str:
    drawn = [figure for finding in findings[:pictures] if (figure := _figure(finding))]
    cells = f'<div class="cells">\n{"".join(drawn)}</div>\n' if drawn else ""
    items = "".join(
        f"<li><code>{escape(finding.source)}</code>: {escape(finding.message)}</li>\n" for finding in findings[:_LISTED]
    )
    rest = f"<li>and {len(findings) - _LISTED:,} more in report.json</li>" if len(findings) > _LISTED else ""
    return (
        f'<section aria-labelledby="{rule.name}">\n<h2 id="{rule.name}">{_sentence(rule.title)} '
        f'<span class="mark {rule.level}">{len(findings):,}</span></h2>\n'
        f'<p class="lead">{_sentence(rule.advice)}.</p>\n{cells}'
        f"<details{'' if drawn else ' open'}><summary>{'All' if not rest else f'The first {_LISTED}'}, the worst first"
        f"</summary><ul>\n{items}{rest}</ul></details>\n</section>\n"
    )


def _sentence(text: str) -> str:
    return escape(text[:1].upper() + text[1:])


def _figure(finding: Finding) -> str:
    """A picture, or two that are compared, with boxes and what is wrong; nothing where there is no picture to show."""
    first = finding.image and _drawing(finding.image, finding.boxes)
    if not first:
        return ""
    second = finding.other and _drawing(finding.other, ())
    shown = f'<div class="pair">{first}{second}</div>' if second else first
    caption = f"<b>{escape(Path(finding.source).name)}</b> {escape(finding.message)}"
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>\n"


def _drawing(path: Path, boxes: Sequence[Numbers]) -> str:
    """An SVG of a picture in its own pixels, so that boxes stand as they are written, also those that leave it."""
    try:
        image = load_image(path)
    except ImageError:
        return ""
    width, height = image.size
    low, high = (-_BEYOND * width, -_BEYOND * height), ((1 + _BEYOND) * width, (1 + _BEYOND) * height)
    shapes, xs, ys = [], [0.0, width], [0.0, height]
    for box in boxes:
        corners = [(min(max(x, low[0]), high[0]), min(max(y, low[1]), high[1])) for x, y in _points(box)]
        (x1, y1), (x2, y2) = corners[0], corners[-1]
        xs, ys = [*xs, x1, x2], [*ys, y1, y2]
        shapes.append(_shape(min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1), max(width, height)))
    view = f"{min(xs):g} {min(ys):g} {max(xs) - min(xs):g} {max(ys) - min(ys):g}"
    return (
        f'<svg viewBox="{view}" role="img" aria-label="{escape(path.name, quote=True)}">'
        f'<image width="{width}" height="{height}" href="{_embed(image)}"/>{"".join(shapes)}</svg>'
    )


def _points(numbers: Numbers) -> list[tuple[float, float]]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _shape(x: float, y: float, width: float, height: float, longest: int) -> str:
    """A box, or a dot for what has no extent; each twice, so that it is seen on dark and on bright ground."""
    if width == 0 and height == 0:
        spot = f'cx="{x:g}" cy="{y:g}"'
        return f'<circle class="edge" {spot} r="{longest / 60:g}"/><circle class="box" {spot} r="{longest / 90:g}"/>'
    # A rectangle without extent is not drawn at all, and an empty box is what is to be seen.
    place = f'x="{x:g}" y="{y:g}" width="{width or 0.01:g}" height="{height or 0.01:g}"'
    return f'<rect class="edge" {place}/><rect class="box" {place}/>'


def _embed(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_LONGEST, _LONGEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
