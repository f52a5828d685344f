"""Exported answers, read by the libraries that define the formats or as their readers do, give our own scores again.

EvalScope 1.14 and VLMEvalKit (ms-vlmeval 0.0.20) themselves are too large to be installed here; `docs/eval.md` says
what they made of these files.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from faster_coco_eval import COCO, COCOeval_faster
from PIL import Image

from answers import Row, ground, predictions, results, vqa
from edgetune.cli import cli
from edgetune_bench import folder as folders
from edgetune_bench.average_precision import average_precision
from edgetune_bench.exports import write
from edgetune_runtime.bench.predictions import GroundPrediction, Prediction, grounding
from edgetune_runtime.errors import InputError, MissingDependency

MODEL = "tiny+lora"


@pytest.fixture
def lines_of(tmp_path: Path) -> list[Row]:
    """Three phrases (one absent), one with two targets, and two questions, on a picture and one stored on its side."""
    plain, turned = str(tmp_path / "plain.png"), str(tmp_path / "turned.jpg")
    Image.new("RGB", (100, 50), "red").save(plain)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(40, 60, 3)).save(turned, exif=exif)
    box = [10.0, 10.0, 30.0, 40.0]
    return [
        ground(plain, [[10.0, 10.0, 30.0, 25.0]], truth=[box], number=1) | {"scores": [0.75], "id": "q1"},
        ground(turned, [[8.0, 15.0, 32.0, 45.0]], truth=[[8.0, 15.0, 32.0, 45.0]], number=2) | {"scores": [0.5]},
        ground(plain, [], truth=[], number=3) | {"scores": [], "status": "refused"},
        ground(plain, [box], truth=[box, [50.0, 5.0, 90.0, 45.0]], number=4) | {"scores": [0.9]},
        ground(plain, [], truth=[box], number=5) | {"scores": [], "raw": "1 2 3 4 what?"},
        vqa(plain, "red", ["crimson", "red", "red"], 6) | {"text": "What\tcolour?"},
        vqa(plain, "2", ["two"], 7) | {"text": "How many?"},
    ]


@pytest.fixture
def rows(lines_of: list[Row]) -> tuple[Prediction, ...]:
    return predictions(lines_of)


def one_target(rows: tuple[Prediction, ...]) -> list[GroundPrediction]:
    return [row for row in grounding(rows) if len(row.truth) == 1]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def iou_of_fractions(said: str, truth: list[float], size: tuple[int, int]) -> float:
    """What a RefCOCO-style reader computes: numbers in 0-1 from the text, times the picture's size."""
    found = re.findall(r"\d+\.\d+", said)
    if len(found) < 4:
        return 0.0
    x1, y1, x2, y2 = (float(value) * side for value, side in zip(found, size * 2, strict=True))
    width = max(0.0, min(x2, truth[2]) - max(x1, truth[0]))
    shared = width * max(0.0, min(y2, truth[3]) - max(y1, truth[1]))
    areas = (x2 - x1) * (y2 - y1) + (truth[2] - truth[0]) * (truth[3] - truth[1])
    return shared / (areas - shared)


def test_coco_files_give_our_ap_when_the_library_reads_them(rows: tuple[Prediction, ...], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    left_out = write({MODEL: rows}, tmp_path / "out", "coco", name="exam")
    assert left_out == ["2 questions: COCO's files hold boxes only"]
    truth = COCO(str(tmp_path / "out" / "exam.json"))
    found = truth.loadRes(str(tmp_path / "out" / "results_tiny_lora.json"))
    run = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
    run.run()
    assert len(truth.imgs) == 5 and len(truth.anns) == 5 and len(found.anns) == 3
    assert run.stats_as_dict["AP_all"] == average_precision(grounding(rows)).ap


def test_coco_makes_up_no_confidence(rows: tuple[Prediction, ...], tmp_path: Path) -> None:
    first = grounding(rows)[0]
    with pytest.raises(InputError, match="boxes without a confidence"):
        write({MODEL: (replace(first, scores=(None,)), *rows[1:])}, tmp_path, "coco", name="exam")
    with pytest.raises(InputError, match="boxes only"):
        write({MODEL: rows[5:]}, tmp_path, "coco", name="exam")


def test_evalscope_s_questions_and_predictions_belong_together(rows: tuple[Prediction, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left_out = write({MODEL: rows}, out, "evalscope", name="exam")
    assert left_out[0].startswith("2 phrases with no or several targets")
    assert left_out[1].startswith("further accepted answers of 1 questions")
    asked = lines(out / "general_vqa" / "exam.jsonl")
    assert [line["answer"] for line in asked] == ["red", "two"]
    text, picture = asked[0]["messages"][0]["content"]
    assert text["text"] == "What\tcolour?" and Path(picture["image_url"]["url"]).is_file()
    assert lines(out / "general_qa" / "exam.jsonl")[1] == {"id": "d.jsonl:7", "query": "How many?", "response": "two"}
    for benchmark in ("general_vqa", "general_qa"):
        said = lines(out / "predictions" / "tiny_lora" / f"{benchmark}_exam.jsonl")
        assert [line["index"] for line in said] == [0, 1]
        assert [line["model_output"]["choices"][0]["message"]["content"] for line in said] == ["red", "2"]


def test_evalscope_s_boxes_score_as_ours(rows: tuple[Prediction, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write({MODEL: rows}, out, "evalscope", name="exam")
    (file,) = (out / "refcoco" / "data").iterdir()
    phrases = pyarrow.parquet.read_table(file).to_pylist()
    said = lines(out / "predictions" / "tiny_lora" / "refcoco_test.jsonl")
    kept = one_target(rows)
    assert [line["question_id"] for line in phrases] == ["q1", "d.jsonl:2", "d.jsonl:5"]
    for line, answer, row in zip(phrases, said, kept, strict=True):
        x, y, w, h = line["bbox"]
        assert (x, y, x + w, y + h) == row.truth[0]
        assert line["answer"] == [row.text]
        size = Image.open(io.BytesIO(line["image"]["bytes"])).size  # as stored: nothing turns it
        content = answer["model_output"]["choices"][0]["message"]["content"]
        assert iou_of_fractions(content, list(row.truth[0]), size) == pytest.approx(row.iou, abs=1e-4)


def test_vlmevalkit_s_tables_score_as_ours(rows: tuple[Prediction, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write({MODEL: rows, "other": rows}, out, "vlmevalkit", name="exam")
    truth, said = table(out / "exam_refcoco.tsv"), table(out / "tiny_lora_exam_refcoco.tsv")
    assert table(out / "other_exam_refcoco.tsv") == said
    kept = one_target(rows)
    for line, answer, row in zip(truth, said, kept, strict=True):
        assert answer["index"] == f"{line['split']}_{line['index']}"
        assert tuple(float(line[f"bbox_{name}"]) for name in ("x1", "y1", "x2", "y2")) == row.truth[0]
        size = Image.open(io.BytesIO(base64.b64decode(line["image"]))).size
        assert size == (int(line["width"]), int(line["height"]))
        assert iou_of_fractions(answer["prediction"], list(row.truth[0]), size) == pytest.approx(row.iou, abs=1e-4)
    asked = table(out / "exam_vqa.tsv")
    assert asked[0]["question"] == "What\tcolour?" and asked[0]["answer"] == "['crimson', 'red', 'red']"
    assert Image.open(io.BytesIO(base64.b64decode(asked[0]["image"]))).size == (100, 50)
    assert asked[1]["image"] == asked[0]["index"]  # the same picture
    assert [line["prediction"] for line in table(out / "tiny_lora_exam_vqa.tsv")] == ["red", "2"]


def test_the_command_exports_a_finished_folder(lines_of: list[Row], tmp_path: Path) -> None:
    (tmp_path / "ev").mkdir()
    found, answers = results({"a": lines_of[:3], "failed": "no memory"})
    folders.write(tmp_path / "ev", found, answers, report=False)
    command = ["eval", "export", str(tmp_path / "ev"), "--format", "coco", "--output", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"] == ["exam.json", "manifest.json", "results_a.json"]
    again = CliRunner().invoke(cli, [*command, "--name", "a b"])
    assert again.exit_code == 2 and "letters, digits" in again.stderr


def test_what_cannot_be_exported_is_said(
    rows: tuple[Prediction, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no row has answers"):
        write({}, tmp_path, "coco", name="exam")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="pyarrow"):
        write({MODEL: rows}, tmp_path, "evalscope", name="exam")
