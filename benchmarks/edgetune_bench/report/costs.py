"""Size, memory and time of every row, as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_bench.report.html import DASH, Column, head, mega, milliseconds, ran, table, text
from edgetune_bench.report.html import section as wrap
from edgetune_runtime.timing import STAGES

_PARTS = [stage for stage in STAGES if stage != "total"]


def size_and_memory(results: Mapping[str, Any]) -> str:
    """Files on disk and peak memory, each on a scale of its own."""
    rows = ran(results)
    columns = []
    for key, title in (("size_bytes", "files"), ("peak_rss_bytes", "memory"), ("peak_gpu_bytes", "GPU memory")):
        sizes = [row.get(key) for row in rows]
        if any(sizes):
            columns.append(Column(title, _bars(sizes), "MB", wide=True))
            columns.append(Column("", [mega(size) for size in sizes]))
    if not columns:
        return ""
    lead = "Files: all of the folder. Memory: largest resident set of the row's process. MB are 10<sup>6</sup> bytes."
    return wrap("Size and memory", lead, table("Size and memory of every row", [head(row) for row in rows], columns))


def stages(results: Mapping[str, Any]) -> str:
    """Median time of each stage of an answer, stacked, on one scale."""
    rows = ran(results)
    if not rows:
        return ""
    medians = [{stage: row["stages"][stage]["p50"] for stage in STAGES} for row in rows]
    longest = max(sum(times[stage] for stage in _PARTS) for times in medians)
    legend = "".join(f'<li><i class="{stage}"></i>{stage}</li>' for stage in _PARTS)
    columns = [Column("", [_stack(times, longest) for times in medians], wide=True)]
    columns += [Column(stage, [milliseconds(times[stage]) for times in medians], "ms") for stage in STAGES]
    lead = (
        "Medians over the records. Vision is the image encoder, prefill ends with the first token, decode is the rest."
    )
    content = f'<ul class="legend">{legend}</ul>\n' + table(
        "Median milliseconds of each stage", [head(row) for row in rows], columns
    )
    return wrap("Where the time goes", lead, content)


def _bars(sizes: Sequence[float | None]) -> list[str]:
    largest = max(size for size in sizes if size)
    return [
        DASH if size is None else f'<span class="bar"><i style="width:{100 * size / largest:.2f}%"></i></span>'
        for size in sizes
    ]


def _stack(times: Mapping[str, float], longest: float) -> str:
    label = ", ".join(f"{stage} {milliseconds(times[stage])} ms" for stage in _PARTS)
    parts = "".join(f'<i class="{stage}" style="width:{100 * times[stage] / longest:.2f}%"></i>' for stage in _PARTS)
    return f'<span class="bar stack" role="img" aria-label="{text(label)}" title="{text(label)}">{parts}</span>'
