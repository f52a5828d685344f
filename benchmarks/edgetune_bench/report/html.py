"""Pieces of HTML: escaped text, elements, tables with captions and row headers, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgetune_runtime.bench.figures import Interval
from edgetune_runtime.bench.results import Results, Row

DASH = '<span class="none">–</span>'
_LONG_NAME = 26  # letters from which a row's name is broken into lines


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, the unit under it, and the cells as HTML; numbers stand to the right."""

    title: str
    cells: Sequence[str]
    unit: str = ""
    wide: bool = False


def text(value: object) -> str:
    """Any value as HTML text."""
    return escape(str(value), quote=True)


def table(caption: str, heads: Sequence[str], columns: Sequence[Column], *, corner: str = "row") -> str:
    """A table whose first column, `heads`, holds the row headers as HTML; it scrolls where it does not fit.

    `caption` says what it shows, to screen readers; a heading stands above it for everybody else.
    """
    share = 99 // max(1, sum(column.wide for column in columns))
    titles = "".join(
        f'<th scope="col"{_wide(column, share)}>{text(column.title)}'
        + (f'<span class="unit">{text(column.unit)}</span>' if column.unit else "")
        + "</th>"
        for column in columns
    )
    body = "".join(
        f'<tr><th scope="row">{head}</th>'
        + "".join(f"<td{_wide(column)}>{column.cells[line]}</td>" for column in columns)
        + "</tr>\n"
        for line, head in enumerate(heads)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table>\n'
        f'<caption class="hidden">{text(caption)}</caption>\n'
        f'<thead><tr><th scope="col">{text(corner)}</th>{titles}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def section(title: str, lead: str, content: str) -> str:
    """A section with its heading and one paragraph (HTML) that says how to read it."""
    identity = title.lower().replace(" ", "-")
    paragraph = f'<p class="lead">{lead}</p>\n' if lead else ""
    return (
        f'<section aria-labelledby="{identity}">\n<h2 id="{identity}">{text(title)}</h2>\n'
        f"{paragraph}{content}</section>\n"
    )


def head(row: Row) -> str:
    """A row's name with its machine and whether it is the baseline, as HTML."""
    marks = [row.machine] if row.machine else []
    marks += ["baseline"] if row.baseline else []
    name = text(row.name)
    if len(row.name) > _LONG_NAME:
        name = f'<span class="long">{name}</span>'
    return name + "".join(f' <span class="mark">{text(mark)}</span>' for mark in marks)


def percent(value: float | None, interval: Interval | None = None, *, signed: bool = False) -> str:
    """A share in percent, with its interval in small print under it."""
    if value is None:
        return DASH
    main = points(value, signed=signed)
    if not interval:
        return main
    low, high = (points(end, signed=signed) for end in (interval.low, interval.high))
    return f'{main}<span class="interval">{low} … {high}</span>'


def points(share: float, *, signed: bool = False) -> str:
    """A share (0-1) in percent, as text; zero has no sign."""
    rounded = round(100 * share, 1) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", "−")


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mega(size: float | None) -> str:
    """Bytes as MB (10^6)."""
    if size is None:
        return DASH
    value = size / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def accuracy(results: Results) -> tuple[str, str, str] | None:
    """What counts as accuracy here, as (kind of record, key, title): boxes where there are any, else answers."""
    for kind, key, title in (("ground", "acc50", "Acc@0.5"), ("vqa", "accuracy", "VQA accuracy")):
        if any(getattr(getattr(row, kind), key, None) is not None for row in results.ran):
            return kind, key, title
    return None


def _wide(column: Column, share: int | None = None) -> str:
    """Wide columns take the room that the others leave, in equal parts of `share` percent."""
    width = "" if share is None else f' style="width:{share}%"'
    return f' class="wide"{width}' if column.wide else ""
