"""Lay results out for reading: an accuracy table, a cost table, and both as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetune_runtime.timing import STAGES

Line = dict[str, object]
_BASELINE = "baseline"
BUSY = 0.1
"""Share of the CPU taken by other processes from which timings are called noisy."""


def accuracy_table(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line per row: accuracies and mIoU in percent, with 95 % intervals; columns without any value are left out."""
    lines = [_accuracy_line(row) for row in rows]
    return _drop_empty(lines)


def cost_table(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line per row: size and memory in MB (10^6 bytes), start in s, stages in ms as p50/p95/p99, decode speed."""
    return _drop_empty([_cost_line(row) for row in rows])


def remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row that failed, has no AP though it was asked for, or was measured on a busy machine."""
    found = []
    for row in rows:
        if reason := ((row.get("ground") or {}).get("coco") or {}).get("reason"):
            found.append(f"{row['name']}: no AP: {reason}")
        others = row.get("others_cpu_share") or 0.0
        if row["status"] == "failed":
            found.append(f"{row['name']}: failed (exit code {row['exit_code']}): {row['reason']}")
            if row.get("baseline"):
                found.append(f"{row['name']}: is the baseline, so there are no differences")
        elif others > BUSY:
            found.append(f"{row['name']}: timings are noisy, other processes used {others:.0%} of the CPU meanwhile")
    return found


def markdown(lines: Sequence[Mapping[str, object]]) -> str:
    """Lines as a Markdown table, under the keys of the first one."""
    if not lines:
        return ""
    table = [[*lines[0]], ["---"] * len(lines[0]), *([cell(value) for value in line.values()] for line in lines)]
    return "".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |\n" for row in table)


def cell(value: object) -> str:
    """A value as text: floats to four digits, nothing as a dash."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _accuracy_line(row: Mapping[str, Any]) -> Line:
    line: Line = {"row": _name(row), "machine": row.get("machine"), "precision": row.get("precision")}
    ground, vqa, delta = (row.get(key) or {} for key in ("ground", "vqa", "delta"))
    for key, title in (("acc50", "Acc@0.5"), ("acc75", "Acc@0.75"), ("acc90", "Acc@0.9")):
        line[title] = _percent(ground.get(key))
    line["mIoU [95 %]"] = _share(ground, "miou")
    line["refusal recall"] = _of(ground["refused_absent"], ground["samples"] - ground["present"]) if ground else None
    line["refusal precision"] = _of(ground["refused_absent"], ground.get("refused", 0)) if ground else None
    line["no valid box"] = _of(ground["unparsed"], ground["samples"]) if ground else None
    coco = ground.get("coco") or {}
    line["AP [95 %]"] = _share(coco, "ap")
    sizes = (("ap_small", "AP S"), ("ap_medium", "AP M"), ("ap_large", "AP L"))
    for key, title in (("ap50", "AP50"), ("ap75", "AP75"), *sizes):
        line[title] = _percent(coco.get(key))
    line["VQA acc [95 %]"] = _share(vqa, "accuracy")
    line["ANLS"] = _percent(vqa.get("anls"))
    line["exact"] = _percent(vqa.get("exact"))
    line["BLEU"] = _round(vqa.get("bleu"), 1)
    line["CIDEr-D"] = _round(vqa.get("cider"), 2)
    for key, title, present in (
        ("acc50", "Acc@0.5", ground),
        ("miou", "mIoU", ground),
        ("vqa", "VQA acc", vqa),
    ):
        own = _BASELINE if row.get("baseline") and present else None
        line[f"Δ {title} [95 %]"] = own or _interval(delta.get(key), signed=True)
    line["McNemar p"] = (delta.get("mcnemar") or {}).get("p")
    drift = delta.get("drift") or {}
    line["box IoU to baseline [95 %]"] = _share(drift, "iou")
    line["boxes below 0.9 [95 %]"] = _share(drift, "moved")
    line["worst box"] = _percent((drift.get("worst") or {}).get("iou"))
    return line


def _cost_line(row: Mapping[str, Any]) -> Line:
    line: Line = {"row": _name(row), "machine": row.get("machine"), "size MB": _mega(row.get("size_bytes"))}
    line["load s"] = _round(row.get("load_s"), 2)
    line["cold start s"] = _round(row.get("cold_start_s"), 2)
    for stage in STAGES:
        times = row.get("stages", {}).get(stage)
        line[f"{stage} ms"] = "/".join(_milliseconds(times[p]) for p in ("p50", "p95", "p99")) if times else None
    line["tokens/s"] = _round(row.get("tokens_per_second"), 1)
    line["RSS MB"] = _mega(row.get("peak_rss_bytes"))
    line["GPU MB"] = _mega(row.get("peak_gpu_bytes"))
    return line


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['name']} (failed)" if row["status"] == "failed" else str(row["name"])


def _drop_empty(lines: list[Line]) -> list[Line]:
    empty = (None, _BASELINE)  # a difference that only the baseline could have says nothing
    kept = [key for key in (lines[0] if lines else ()) if any(line[key] not in empty for line in lines)]
    return [{key: line[key] for key in kept} for line in lines]


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def _interval(value: Mapping[str, float] | None, *, signed: bool) -> str | None:
    if not value:
        return None
    sign = "+" if signed else ""
    mean, low, high = (f"{100 * value[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _share(values: Mapping[str, Any], key: str) -> str | None:
    """A share in percent with its interval, which one image alone does not have."""
    share = _percent(values.get(key))
    return _interval(values.get(f"{key}_interval"), signed=False) or (None if share is None else str(share))


def _of(part: int, whole: int) -> str | None:
    return f"{part}/{whole}" if whole else None


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def _mega(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
