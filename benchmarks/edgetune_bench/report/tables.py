"""The tables of the page: its head and summary, failed rows, differences, size and memory, stages, provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from edgetune_bench.report.html import (
    DASH,
    Column,
    accuracy,
    head,
    mega,
    milliseconds,
    percent,
    points,
    table,
    text,
)
from edgetune_bench.report.html import section as wrap
from edgetune_bench.table import BUSY, CONDITIONS, UNTOLD
from edgetune_runtime.bench.figures import Interval
from edgetune_runtime.bench.results import Failed, Measured, Origin, Results, Row
from edgetune_runtime.timing import STAGES
from edgetune_runtime.typed_json import encode

_PARTS = [stage for stage in STAGES if stage != "total"]


def header(results: Results) -> str:
    """Title and what was measured where, in two lines."""
    data = results.data
    places = "; ".join(f"{text(name)}{': ' if name else ''}{_machine(it)}" for name, it in results.origins.items())
    failed = len(results.failed)
    rows = f"{len(results.rows)} rows" + (f", {failed} failed" if failed else "")
    shard = f"<p><strong>{text(results.shard_remark)}</strong></p>\n" if results.shard_remark else ""
    return (
        "<header>\n<h1>edgetune bench</h1>\n"
        f"<p><strong>{text(data.path)}</strong>: {data.records:,} records, {rows}</p>\n"
        f'<p class="muted">{places}; {text(results.created[:16].replace("T", " "))} UTC</p>\n{shard}'
        f"{_findings(results)}</header>\n"
    )


def summary(results: Results) -> str:
    """One line a row: accuracy, differences, speed and size, with intervals under the figures."""
    rows = results.rows
    columns = [
        _column(rows, "Acc@0.5", "%", lambda row: _share(row.ground, "acc50")),
        _column(rows, "Δ", "points", lambda row: _delta(row, "acc50")),
        _column(rows, "mIoU", "%", lambda row: _share(row.ground, "miou")),
        _column(rows, "VQA", "%", lambda row: _share(row.vqa, "accuracy")),
        _column(rows, "Δ VQA", "points", lambda row: _delta(row, "vqa")),
        _column(rows, "box IoU", "% to baseline", lambda row: _share(row.delta and row.delta.drift, "iou")),
        _column(rows, "p50", "ms", lambda row: milliseconds(row.stages.total.p50)),
        _column(rows, "p95", "ms", lambda row: milliseconds(row.stages.total.p95)),
        _column(rows, "decode", "tokens/s", _speed),
        _column(rows, "size", "MB", lambda row: mega(row.size_bytes)),
        _column(rows, "memory", "MB", lambda row: mega(row.peak_rss_bytes)),
        _column(rows, "GPU", "MB", lambda row: mega(row.peak_gpu_bytes)),
        _column(rows, "energy", "J an answer", _energy),
    ]
    shown = [column for column in columns if column is not None]
    heads = [_head(row) for row in rows]
    notes = _noise(results.ran)
    lead = "Small print: 95 % intervals, images drawn again. Times are of one answer, from picture to text."
    return wrap("Summary", lead, table("Accuracy, speed and size of every row", heads, shown) + notes)


def failed(results: Results) -> str:
    """The rows that gave no figures, each with its reason; nothing when all ran."""
    rows = results.failed
    if not rows:
        return ""
    columns = [
        Column("exit code", [str(row.exit_code) for row in rows]),
        Column("reason", [f'<span class="reason">{text(row.reason)}</span>' for row in rows], wide=True),
    ]
    lead = "A row that cannot run stays in the table, with the last thing that it said."
    return wrap("Failed rows", lead, table("Rows that failed, and why", [head(row) for row in rows], columns))


def _head(row: Row) -> str:
    """The row's name, whether it failed, and under it what the bundle says it is where the name does not."""
    failed = ' <span class="mark bad">failed</span>' if isinstance(row, Failed) else ""
    what = row.title or (row.precision if isinstance(row, Measured) else None)
    return head(row) + failed + (f'<span class="unit">{text(what)}</span>' if what and what != row.name else "")


def _noise(rows: Sequence[Measured]) -> str:
    """One line about the rows whose timings other processes disturbed."""
    noisy = [(row.name, row.others_cpu_share) for row in rows if (row.others_cpu_share or 0.0) > BUSY]
    if not noisy:
        return ""
    names = ", ".join(f"{text(name)} ({share:.0%})" for name, share in noisy)
    return f'<p class="note">Noisy timings; other processes took this share of the CPU meanwhile: {names}.</p>\n'


def _findings(results: Results) -> str:
    """Fastest, smallest and most accurate row, each with the figure that makes it so."""
    rows = results.ran
    if len(rows) < 2:
        return ""
    fastest = min(rows, key=_median)
    smallest = min(rows, key=lambda row: row.size_bytes)
    facts: list[tuple[str, Measured, str]] = [
        ("fastest", fastest, f"{milliseconds(_median(fastest))} ms"),
        ("smallest", smallest, f"{mega(smallest.size_bytes)} MB"),
    ]
    measured = accuracy(results)
    if measured:
        kind, key, title = measured
        shares = [(getattr(getattr(row, kind), key, None), row) for row in rows]
        share, best = max(((share, row) for share, row in shares if share is not None), key=lambda pair: pair[0])
        facts.insert(0, ("most accurate", best, f"{percent(share)} % {title}"))
    reference = next((row for row in rows if row.baseline), None)
    if (
        reference is not None
        and reference is not fastest
        and reference.machine == fastest.machine
        and _median(fastest) > 0
    ):
        times = _median(reference) / _median(fastest)
        facts[-2] = ("fastest", fastest, f"{milliseconds(_median(fastest))} ms, {times:.1f}× the baseline")
    items = "".join(
        f"<div><dt>{what}</dt><dd><b>{text(row.name)}</b> {text(figure)}</dd></div>" for what, row, figure in facts
    )
    return f'<dl class="facts">{items}</dl>\n'


def _machine(origin: Origin) -> str:
    facts, threads, areas = origin.machine, origin.options.threads, origin.options.max_pixels
    gpu = f", {text(facts.gpu)}" if facts.gpu else ""
    used = "" if threads is None else f", {threads} thread{'s' if threads != 1 else ''}"
    bounded = f", pictures of at most {' and '.join(f'{area:,}' for area in areas)} pixels" if areas else ""
    return f"{text(facts.board or facts.cpu)}{gpu}{used}{bounded}"


def _column(rows: Sequence[Row], title: str, unit: str, cell: Callable[[Measured], str]) -> Column | None:
    """A column, or None when no row has anything to say in it."""
    cells = [cell(row) if isinstance(row, Measured) else DASH for row in rows]
    return None if all(value == DASH for value in cells) else Column(title, cells, unit)


def _share(figures: object, key: str) -> str:
    """A share of a row's figures with its interval; a dash where it has none."""
    return percent(getattr(figures, key, None), getattr(figures, f"{key}_interval", None))


def _delta(row: Measured, key: str) -> str:
    interval: Interval | None = getattr(row.delta, key, None)
    return percent(interval.value, interval, signed=True) if interval else DASH


def _energy(row: Measured) -> str:
    """Joules of an answer, and under them what told them."""
    if row.power is None or row.power.joules is None:
        return UNTOLD
    return f'{row.power.joules:.3g}<span class="interval">{text(" + ".join(row.power.parts))}</span>'


def power(results: Results) -> str:
    """Energy, temperatures and clocks of every row; nothing where no machine tells any."""
    rows = [row for row in results.ran if row.power]
    columns = [
        _column(rows, "energy", "J an answer", _energy),
        _column(rows, "power", "W", lambda row: _figure(row, "watts", "{:.3g}")),
        *(_column(rows, title, "", partial(_figure, key=key, form="{:.0f}")) for key, title in CONDITIONS.items()),
        _column(rows, "mode", "", lambda row: _figure(row, "mode", "{}")),
    ]
    shown = [column for column in columns[1:] if column is not None]
    if not shown or columns[0] is None:
        return ""
    lead = (
        "Energy and power are those of the whole machine, or of what is named, while records were answered. "
        "Temperatures and clocks were read at the end."
    )
    heads = [head(row) for row in rows]
    return wrap("Energy and clocks", lead, table("Energy, temperatures and clocks", heads, [columns[0], *shown]))


def _figure(row: Measured, key: str, form: str) -> str:
    value = getattr(row.power, key, None)
    return DASH if value is None else text(form.format(value))


def _median(row: Measured) -> float:
    return row.stages.total.p50


def _speed(row: Measured) -> str:
    return DASH if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"


def changes(results: Results) -> str:
    """Differences with their intervals drawn on one scale; nothing without a baseline."""
    pairs = [(row, row.delta) for row in results.ran if row.delta]
    if not pairs:
        return ""
    rows, deltas = [row for row, _ in pairs], [delta for _, delta in pairs]
    columns = []
    for key, title in (("acc50", "Δ Acc@0.5"), ("miou", "Δ mIoU"), ("vqa", "Δ VQA")):
        intervals: list[Interval | None] = [getattr(delta, key) for delta in deltas]
        if any(intervals):
            columns.append(Column(title, _plots(intervals), "points", wide=True))
    tests = [delta.mcnemar for delta in deltas]
    if any(tests):
        columns.append(Column("McNemar", [f"{test.p:.2g}" if test else DASH for test in tests], "p"))
    drifts = [delta.drift for delta in deltas]
    if any(drifts):
        boxes, moved = ([_share(drift, key) for drift in drifts] for key in ("iou", "moved"))
        worst = [percent(drift.worst.iou) if drift else DASH for drift in drifts]
        columns.append(Column("box IoU", boxes, "% to baseline"))
        columns.append(Column("moved", moved, "% below 0.9"))
        columns.append(Column("worst", worst, "IoU, %"))
    lead = (
        "Record by record against the baseline. An interval that crosses the line may be chance. "
        "Box IoU compares a row's boxes with the baseline's, whatever the truth is."
    )
    return wrap(
        "Against the baseline", lead, table("Differences to the baseline", [head(row) for row in rows], columns)
    )


def _plots(intervals: Sequence[Interval | None]) -> list[str]:
    """A dot and a bar for each interval, all on the scale that holds every one of them and zero."""
    known = [interval for interval in intervals if interval]
    low = min(0.0, *(interval.low for interval in known))
    high = max(0.0, *(interval.high for interval in known))
    margin = 0.06 * (high - low) or 0.01
    low, width = low - margin, high - low + 2 * margin

    def place(value: float) -> float:
        return 100 * (value - low) / width

    plots: list[str] = []
    for interval in intervals:
        if interval is None:
            plots.append(DASH)
            continue
        left, right = place(interval.low), place(interval.high)
        crosses = interval.low <= 0 <= interval.high
        kind = "unsure" if crosses else "better" if interval.value > 0 else "worse"
        value, below, above = (points(end, signed=True) for end in (interval.value, interval.low, interval.high))
        plots.append(
            f'<span class="plot {kind}" aria-hidden="true">'
            f'<i class="zero" style="left:{place(0.0):.2f}%"></i>'
            f'<i class="range" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
            f'<i class="dot" style="left:{place(interval.value):.2f}%"></i></span>'
            f'{value} <span class="muted">[{below}, {above}]</span>'
        )
    return plots


def size_and_memory(results: Results) -> str:
    """Files on disk and peak memory, each on a scale of its own."""
    rows = results.ran
    columns = []
    for key, title in (("size_bytes", "files"), ("peak_rss_bytes", "memory"), ("peak_gpu_bytes", "GPU memory")):
        sizes: list[int | None] = [getattr(row, key) for row in rows]
        if any(sizes):
            columns.append(Column(title, _bars(sizes), "MB", wide=True))
            columns.append(Column("", [mega(size) for size in sizes]))
    if not columns:
        return ""
    lead = "Files: all of the folder. Memory: largest resident set of the row's process. MB are 10<sup>6</sup> bytes."
    return wrap("Size and memory", lead, table("Size and memory of every row", [head(row) for row in rows], columns))


def stages(results: Results) -> str:
    """Median time of each stage of an answer, stacked, on one scale."""
    rows = results.ran
    if not rows:
        return ""
    medians: list[dict[str, float]] = [{stage: getattr(row.stages, stage).p50 for stage in STAGES} for row in rows]
    longest = max(sum(times[stage] for stage in _PARTS) for times in medians) or 1.0
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


def provenance(results: Results) -> str:
    """Everything that is needed to measure the same again."""
    inputs = results.inputs
    columns = [
        Column("sha256", [f"<code>{text(entry.sha256)}</code>" for entry in inputs.values()], wide=True),
        Column("path", [text(entry.path) for entry in inputs.values()], wide=True),
    ]
    hashes = table("Inputs and their sha256", [text(name) for name in inputs], columns, corner="input")
    parts = "".join(_origin(name, origin) for name, origin in results.origins.items())
    statistics = ", ".join(f"{text(key)} {text(value)}" for key, value in encode(results.statistics).items())
    pictures = f"<p>Pictures: sha256 <code>{text(results.data.images_sha256)}</code></p>\n"
    return wrap("Provenance", "", f"{hashes}{pictures}<p>Intervals: {statistics}.</p>\n{parts}")


def _origin(name: str, origin: Origin) -> str:
    known = {"machine": encode(origin.machine), "versions": origin.versions, "options": encode(origin.options)}
    facts = "".join(f"<div><dt>{key}</dt><dd>{_facts(values)}</dd></div>" for key, values in known.items())
    jobs = "".join(f"<pre>{text(job.command)}</pre>\n" for job in origin.shards or ())
    title = f"<h3>{text(name)}</h3>\n" if name else ""
    return f"{title}<pre>{text(origin.command)}</pre>\n{jobs}<dl class='facts long'>{facts}</dl>\n"


def _facts(values: Mapping[str, object]) -> str:
    return "<br>".join(f"{text(key)} <b>{text(value)}</b>" for key, value in values.items() if value is not None)
