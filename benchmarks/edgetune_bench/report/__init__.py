"""The report: one self-contained HTML page about a measurement, which fetches nothing and needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from edgetune_bench.report import curve, scatter, tables, worst_boxes
from edgetune_bench.report.html import text
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.results import Results

# Enforced by the browser, whatever a name or a reason in the results may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report_page(results: Results, answers: Answers, pictures: Sequence[str] = ()) -> str:
    """Return the page as one string.

    Args:
        results: of one machine or joined from several.
        answers: predictions of the rows that ran, by name.
        pictures: the file of each record's picture, to be drawn; none where they are not here.
    """
    sections = (
        tables.summary(results),
        scatter.section(results),
        curve.section(results),
        tables.changes(results),
        tables.size_and_memory(results),
        tables.stages(results),
        tables.power(results),
        worst_boxes.section(results, answers, pictures),
        tables.failed(results),
        tables.provenance(results),
    )
    style = files(__name__).joinpath("style.css").read_text(encoding="utf-8")
    title = f"edgetune bench: {text(results.data.path.rpartition('/')[2])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{tables.header(results)}<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )
