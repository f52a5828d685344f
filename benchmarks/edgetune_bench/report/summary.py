"""The head of the page, the table that sums everything up, and the rows that failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgetune_bench.report.html import (
    DASH,
    Column,
    Row,
    accuracy,
    head,
    mega,
    milliseconds,
    percent,
    ran,
    table,
    text,
)
from edgetune_bench.report.html import section as wrap
from edgetune_bench.table import BUSY


def header(results: Mapping[str, Any]) -> str:
    """Title and what was measured where, in two lines."""
    data = results["data"]
    machines = results.get("machines") or {"": results}
    places = "; ".join(f"{text(name)}{': ' if name else ''}{_machine(part)}" for name, part in machines.items())
    failed = sum(row["status"] == "failed" for row in results["rows"])
    rows = f"{len(results['rows'])} rows" + (f", {failed} failed" if failed else "")
    return (
        "<header>\n<h1>edgetune bench</h1>\n"
        f"<p><strong>{text(data['path'])}</strong>: {data['records']:,} records, {rows}</p>\n"
        f'<p class="muted">{places}; {text(results["created"][:16].replace("T", " "))} UTC</p>\n'
        f"{_findings(results)}</header>\n"
    )


def section(results: Mapping[str, Any]) -> str:
    """One line a row: accuracy, differences, speed and size, with intervals under the figures."""
    rows = results["rows"]
    columns = [
        _column(rows, "Acc@0.5", "%", lambda row: _share(row.get("ground"), "acc50")),
        _column(rows, "Δ", "points", lambda row: _delta(row, "acc50")),
        _column(rows, "mIoU", "%", lambda row: _share(row.get("ground"), "miou")),
        _column(rows, "VQA", "%", lambda row: _share(row.get("vqa"), "accuracy")),
        _column(rows, "Δ VQA", "points", lambda row: _delta(row, "vqa")),
        _column(rows, "box IoU", "% to baseline", lambda row: _share(_drift(row), "iou")),
        _column(rows, "p50", "ms", lambda row: _time(row, "p50")),
        _column(rows, "p95", "ms", lambda row: _time(row, "p95")),
        _column(rows, "decode", "tokens/s", lambda row: _speed(row)),
        _column(rows, "size", "MB", lambda row: mega(row.get("size_bytes"))),
        _column(rows, "memory", "MB", lambda row: mega(row.get("peak_rss_bytes"))),
        _column(rows, "GPU", "MB", lambda row: mega(row.get("peak_gpu_bytes"))),
    ]
    shown = [column for column in columns if column is not None]
    heads = [_head(row) for row in rows]
    notes = _noise(ran(results))
    lead = "Small print: 95 % intervals, images drawn again. Times are of one answer, from picture to text."
    return wrap("Summary", lead, table("Accuracy, speed and size of every row", heads, shown) + notes)


def failed(results: Mapping[str, Any]) -> str:
    """The rows that gave no figures, each with its reason; nothing when all ran."""
    rows = [row for row in results["rows"] if row["status"] == "failed"]
    if not rows:
        return ""
    columns = [
        Column("exit code", [str(row["exit_code"]) for row in rows]),
        Column("reason", [f'<span class="reason">{text(row["reason"])}</span>' for row in rows], wide=True),
    ]
    lead = "A row that cannot run stays in the table, with the last thing that it said."
    return wrap("Failed rows", lead, table("Rows that failed, and why", [head(row) for row in rows], columns))


def _head(row: Row) -> str:
    """The row's name, whether it failed, and under it what the bundle says it is where the name does not."""
    failed = ' <span class="mark bad">failed</span>' if row["status"] == "failed" else ""
    what = row.get("title") or row.get("precision")
    return head(row) + failed + (f'<span class="unit">{text(what)}</span>' if what and what != row["name"] else "")


def _noise(rows: Sequence[Row]) -> str:
    """One line about the rows whose timings other processes disturbed."""
    noisy = [row for row in rows if (row.get("others_cpu_share") or 0.0) > BUSY]
    if not noisy:
        return ""
    names = ", ".join(f"{text(row['name'])} ({row['others_cpu_share']:.0%})" for row in noisy)
    return f'<p class="note">Noisy timings; other processes took this share of the CPU meanwhile: {names}.</p>\n'


def _findings(results: Mapping[str, Any]) -> str:
    """Fastest, smallest and most accurate row, each with the figure that makes it so."""
    rows = ran(results)
    if len(rows) < 2:
        return ""
    fastest = min(rows, key=lambda row: _median(row))
    smallest = min(rows, key=lambda row: float(row["size_bytes"]))
    facts = [
        ("fastest", fastest, f"{milliseconds(_median(fastest))} ms"),
        ("smallest", smallest, f"{mega(smallest['size_bytes'])} MB"),
    ]
    measured = accuracy(results)
    if measured:
        kind, key, title = measured
        best = max((row for row in rows if row.get(kind)), key=lambda row: float(row[kind][key]))
        facts.insert(0, ("most accurate", best, f"{percent(best[kind][key])} % {title}"))
    reference = next((row for row in rows if row["baseline"]), None)
    if reference is not None and fastest is not reference and reference.get("machine") == fastest.get("machine"):
        times = _median(reference) / _median(fastest)
        facts[-2] = ("fastest", fastest, f"{milliseconds(_median(fastest))} ms, {times:.1f}× the baseline")
    items = "".join(
        f"<div><dt>{what}</dt><dd><b>{text(row['name'])}</b> {text(figure)}</dd></div>" for what, row, figure in facts
    )
    return f'<dl class="facts">{items}</dl>\n'


def _machine(part: Mapping[str, Any]) -> str:
    facts = part["machine"]
    threads = part["options"]["threads"]
    gpu = f", {text(facts['gpu'])}" if facts.get("gpu") else ""
    used = "" if threads is None else f", {threads} thread{'s' if threads != 1 else ''}"
    return f"{text(facts['board'] or facts['cpu'])}{gpu}{used}"


def _column(rows: list[Row], title: str, unit: str, cell: Callable[[Row], str]) -> Column | None:
    """A column, or None when no row has anything to say in it."""
    cells = [cell(row) if row["status"] == "ok" else DASH for row in rows]
    return None if all(value == DASH for value in cells) else Column(title, cells, unit)


def _share(values: Mapping[str, Any] | None, key: str) -> str:
    return percent(values[key], values.get(f"{key}_interval")) if values else DASH


def _delta(row: Row, key: str) -> str:
    interval = (row.get("delta") or {}).get(key)
    return percent(interval["value"], interval, signed=True) if interval else DASH


def _drift(row: Row) -> Mapping[str, Any] | None:
    drift: Mapping[str, Any] | None = (row.get("delta") or {}).get("drift")
    return drift


def _median(row: Row) -> float:
    return float(row["stages"]["total"]["p50"])


def _time(row: Row, percentile: str) -> str:
    return milliseconds(row["stages"]["total"][percentile])


def _speed(row: Row) -> str:
    return DASH if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"
