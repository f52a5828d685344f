"""The report: one self-contained HTML page about a measurement, which fetches nothing and needs no script."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from edgetune_bench.report import changes, costs, drift, provenance, scatter, summary
from edgetune_bench.report.html import text
from edgetune_runtime.bench.plan import Answers

# Enforced by the browser, whatever a name or a reason in the results may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report_page(results: Mapping[str, Any], answers: Answers) -> str:
    """Return the page as one string.

    Args:
        results: as in results.json, of one machine or joined from several.
        answers: scored answers of the rows that ran, by name; pictures are drawn from the image files they name.
    """
    sections = (
        summary.section(results),
        scatter.section(results),
        changes.section(results),
        costs.size_and_memory(results),
        costs.stages(results),
        drift.section(results, answers),
        summary.failed(results),
        provenance.section(results),
    )
    style = files(__name__).joinpath("style.css").read_text(encoding="utf-8")
    title = f"edgetune bench: {text(results['data']['path'].rpartition('/')[2])}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{summary.header(results)}<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )
