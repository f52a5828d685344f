"""Lay results out for reading: an accuracy table, a cost table, and both as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape as escape_html

from edgetune_bench.curves import curves
from edgetune_runtime.bench.figures import Interval, ScoreInterval
from edgetune_runtime.bench.results import Failed, Measured, Row
from edgetune_runtime.timing import STAGES

Line = dict[str, object]
_BASELINE = "baseline"
BUSY = 0.1
"""Share of the CPU taken by other processes from which timings are called noisy."""
UNTOLD = "not told"
"""What stands in place of the energy of a machine that does not tell it."""
CONDITIONS = {"temperature_c": "°C", "cpu_mhz": "CPU MHz", "gpu_temperature_c": "GPU °C", "gpu_mhz": "GPU MHz"}
"""Titles of the conditions of a row, by the names of the fields of its power."""


def accuracy_table(rows: Sequence[Row]) -> list[Line]:
    """One line per row: accuracies and mIoU in percent, with 95 % intervals; columns without any value are left out."""
    lines = [_accuracy_line(row) for row in rows]
    return _drop_empty(lines)


def cost_table(rows: Sequence[Row]) -> list[Line]:
    """One line per row: size and memory in MB (10^6 bytes), start in s, stages in ms as p50/p95/p99, decode speed."""
    return _drop_empty([_cost_line(row) for row in rows])


def curve_table(rows: Sequence[Row]) -> list[Line]:
    """One line per bound of each model's pictures: image tokens, accuracies in percent, ms; none without bounds."""
    return _drop_empty([_curve_line(row) for curve in curves(rows) for row in curve.rows])


def remarks(rows: Sequence[Row]) -> list[str]:
    """A line for each row that failed, has no AP though it was asked for, or was measured on a busy machine.

    And one for each reason for which a machine told no energy.
    """
    found = []
    reasons = {(row.machine, row.power.untold): None for row in rows if isinstance(row, Measured) and row.power}
    for row in rows:
        if isinstance(row, Failed):
            found.append(f"{row.name}: failed (exit code {row.exit_code}): {row.reason}")
            if row.baseline:
                found.append(f"{row.name}: is the baseline, so there are no differences")
            continue
        if row.ground and row.ground.coco and row.ground.coco.reason:
            found.append(f"{row.name}: no AP: {row.ground.coco.reason}")
        others = row.others_cpu_share or 0.0
        if others > BUSY:
            found.append(f"{row.name}: timings are noisy, other processes used {others:.0%} of the CPU meanwhile")
    told = ((f"{machine}: " if machine else "", reason) for machine, reason in reasons if reason)
    return found + [f"{machine}energy is not told: {reason}" for machine, reason in told]


def markdown(lines: Sequence[Mapping[str, object]]) -> str:
    """Lines as a Markdown table, under the keys of the first one."""
    if not lines:
        return ""
    table = [[*lines[0]], ["---"] * len(lines[0]), *([cell(value) for value in line.values()] for line in lines)]
    return "".join("| " + " | ".join(map(escape, row)) + " |\n" for row in table)


def escape(text: str) -> str:
    """Text for a line or a cell of Markdown: names and reasons may hold anything, and none of it is to be run."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", text)
    # HTML, the bars of a table, and links with their target; brackets of intervals stay as they are.
    return escape_html(plain, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("](", "]\\(")


def cell(value: object) -> str:
    """A value as text: floats to four digits, nothing as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _accuracy_line(row: Row) -> Line:
    ran = row if isinstance(row, Measured) else None
    line: Line = {"row": _name(row), "machine": row.machine, "precision": ran.precision if ran else None}
    ground, vqa, delta = (getattr(ran, part, None) for part in ("ground", "vqa", "delta"))
    for key, title in (("acc50", "Acc@0.5"), ("acc75", "Acc@0.75"), ("acc90", "Acc@0.9")):
        line[title] = _percent(getattr(ground, key, None))
    line["mIoU [95 %]"] = _share(ground, "miou")
    line["refusal recall"] = _of(ground.refused_absent, ground.samples - ground.present) if ground else None
    line["refusal precision"] = _of(ground.refused_absent, ground.refused) if ground else None
    line["no valid box"] = _of(ground.unparsed, ground.samples) if ground else None
    coco = getattr(ground, "coco", None)
    line["AP [95 %]"] = _share(coco, "ap")
    sizes = (("ap_small", "AP S"), ("ap_medium", "AP M"), ("ap_large", "AP L"))
    for key, title in (("ap50", "AP50"), ("ap75", "AP75"), *sizes):
        line[title] = _percent(getattr(coco, key, None))
    line["VQA acc [95 %]"] = _share(vqa, "accuracy")
    line["ANLS"] = _percent(vqa.anls if vqa else None)
    line["exact"] = _percent(vqa.exact if vqa else None)
    line["BLEU"] = _round(vqa.bleu if vqa else None, 1)
    line["CIDEr-D"] = _round(vqa.cider if vqa else None, 2)
    for key, title, present in (
        ("acc50", "Acc@0.5", ground),
        ("miou", "mIoU", ground),
        ("vqa", "VQA acc", vqa),
    ):
        own = _BASELINE if row.baseline and present else None
        line[f"Δ {title} [95 %]"] = own or _interval(getattr(delta, key, None), signed=True)
    line["McNemar p"] = delta.mcnemar.p if delta and delta.mcnemar else None
    drift = getattr(delta, "drift", None)
    line["box IoU to baseline [95 %]"] = _share(drift, "iou")
    line["boxes below 0.9 [95 %]"] = _share(drift, "moved")
    line["worst box"] = _percent(drift.worst.iou if drift else None)
    return line


def _cost_line(row: Row) -> Line:
    ran = row if isinstance(row, Measured) else None
    line: Line = {"row": _name(row), "machine": row.machine, "size MB": _mega(ran.size_bytes if ran else None)}
    line["load s"] = _round(ran.load_s if ran else None, 2)
    line["cold start s"] = _round(ran.cold_start_s if ran else None, 2)
    for stage in STAGES:
        times = getattr(ran.stages, stage) if ran else None
        line[f"{stage} ms"] = "/".join(map(_milliseconds, (times.p50, times.p95, times.p99))) if times else None
    line["tokens/s"] = _round(ran.tokens_per_second if ran else None, 1)
    line["RSS MB"] = _mega(ran.peak_rss_bytes if ran else None)
    line["GPU MB"] = _mega(ran.peak_gpu_bytes if ran else None)
    power = ran.power if ran else None
    joules = power.joules if power else None
    line["J an answer"] = UNTOLD if ran and joules is None else _digits(joules)
    line["told by"] = " + ".join(power.parts) or None if power else None
    line["W"] = _digits(power.watts if power else None)
    for key, title in CONDITIONS.items():
        line[title] = _round(getattr(power, key, None), 0)
    line["power mode"] = power.mode if power else None
    return line


def _curve_line(row: Measured) -> Line:
    line: Line = {"row": row.name, "machine": row.machine, "max pixels": row.max_pixels}
    line["image tokens"] = row.image_tokens
    for key, title in (("acc50", "Acc@0.5"), ("acc75", "Acc@0.75")):
        line[f"{title} [95 %]"] = _share(row.ground, key)
    line["VQA acc [95 %]"] = _share(row.vqa, "accuracy")
    line["Δ Acc@0.5 [95 %]"] = _interval(getattr(row.delta, "acc50", None), signed=True)
    line["total ms p50"] = _milliseconds(row.stages.total.p50)
    line["J an answer"] = _digits(row.power.joules if row.power else None)
    return line


def _name(row: Row) -> str:
    return f"{row.name} (failed)" if isinstance(row, Failed) else row.name


def _drop_empty(lines: list[Line]) -> list[Line]:
    empty = (None, _BASELINE)  # a difference that only the baseline could have says nothing
    kept = [key for key in (lines[0] if lines else ()) if any(line[key] not in empty for line in lines)]
    return [{key: line[key] for key in kept} for line in lines]


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def _interval(value: Interval | ScoreInterval | None, *, signed: bool) -> str | None:
    if not value:
        return None
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * end:{sign}.1f}" for end in (value.value, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def _share(figures: object, key: str) -> str | None:
    """A share in percent with its interval, which one image alone does not have."""
    share = _percent(getattr(figures, key, None))
    interval = _interval(getattr(figures, f"{key}_interval", None), signed=False)
    return interval or (None if share is None else str(share))


def _of(part: int, whole: int) -> str | None:
    return f"{part}/{whole}" if whole else None


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def _mega(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def _digits(value: float | None) -> float | None:
    """Three digits, whatever the size."""
    return None if value is None else float(f"{value:.3g}")


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
