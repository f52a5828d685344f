"""COCO's own files: one with the targets, and one of results for each model (cocodataset.org, "results format")."""

from __future__ import annotations

import json
from pathlib import Path

from edgetune_bench.average_precision import coco_results, coco_truth
from edgetune_bench.exports.rows import file_name
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.errors import InputError


def write(name: str, answers: Answers, folder: Path) -> list[str]:
    """Write NAME.json, an instances file, and results_MODEL.json for `COCO.loadRes`; returns what was left out.

    Image N is the N-th grounding record: COCO knows no phrases, so each phrase is an image of its own, of one category.

    Raises:
        InputError: there are no grounding records, or a box has no confidence, which COCO's ranking needs.
    """
    left_out = []
    for number, (model, rows) in enumerate(answers.items()):
        ground = [row for row in rows if row["kind"] == "ground"]
        if not ground:
            raise InputError("no grounding records: COCO's files hold boxes only")
        if any(score is None for row in ground for score in row.get("scores") or [None] * len(row["boxes"])):
            raise InputError(
                f"{model}: boxes without a confidence, which COCO's ranking needs",
                hint="score the checkpoint, or its bundle with an engine that gives probabilities",
            )
        if number == 0:
            _dump(coco_truth(ground), folder / f"{name}.json")
            if len(ground) < len(rows):
                left_out.append(f"{len(rows) - len(ground)} questions: COCO's files hold boxes only")
        _dump(coco_results(ground), folder / f"results_{file_name(model)}.json")
    return left_out


def _dump(value: object, path: Path) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
