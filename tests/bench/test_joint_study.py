"""The table of the joint study from answers written by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from answers import ground, part, predictions, vqa
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.records import Record

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "studies" / "joint_study.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("joint_study", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["joint_study"] = module
    spec.loader.exec_module(module)
    return module


def question(asks: str, answer: str) -> Record:
    return Record(Path("x.png"), "?", None, [], [answer], None, "train.jsonl:1", meta={"asks": asks})


def answers(right: bool) -> tuple[Prediction, ...]:
    said = "3" if right else "4"
    boxes = part(1.0 if right else 0.2)
    rows = [ground(f"g{n}", boxes, number=n) for n in range(4)]
    rows += [ground("g9", [], truth=[], number=9) | {"status": "refused" if right else "unparsed"}]
    rows += [vqa(f"v{n}", said, ["3"], 20 + n) for n in range(3)] + [vqa("v9", said, ["5"], 29)]
    return predictions(rows)


KINDS = {f"d.jsonl:{n}": "count" for n in (20, 21, 22)} | {"d.jsonl:29": "colour"}


def test_the_majority_answers_each_kind_with_its_own_favourite(study: ModuleType) -> None:
    trained = [question("count", "3"), question("count", "3"), question("count", "5"), question("colour", "5")]
    found = study.majority(trained, answers(False), KINDS)
    assert [row.accuracy for row in found] == [1.0, 1.0, 1.0, 1.0]
    trained = [question("count", "5"), question("colour", "3")]
    assert [row.accuracy for row in study.majority(trained, answers(True), KINDS)] == [0.0] * 4


def test_every_figure_is_in_its_place(study: ModuleType) -> None:
    rows = {
        "base": answers(False),
        "majority": study.majority([question("count", "3"), question("colour", "3")], answers(False), KINDS),
        "boxes alone": answers(True),
        "answers alone": answers(False),
        "both": answers(True),
    }
    lines = {line["row"]: line for line in study.tabulate(rows, KINDS)}
    assert lines["base"]["Acc@0.5"] == "0.0 [0.0, 0.0]" and lines["both"]["Acc@0.5"] == "100.0 [100.0, 100.0]"
    assert lines["both"]["VQA count"] == "100.0 [100.0, 100.0]" and lines["both"]["VQA colour"] == "0.0"
    assert lines["majority"]["mIoU"] == "-" and lines["majority"]["VQA"].startswith("75.0 [")
    assert lines["both"]["refusal recall"] == "100.0"  # one image has no interval
    assert lines["both − boxes alone"]["mIoU"] == "+0.0 [+0.0, +0.0]"
    assert lines["both − answers alone"]["VQA count"] == "+100.0 [+100.0, +100.0]"
    assert lines["both − answers alone"]["mIoU"] == "-"
    assert lines["records"] == {
        "row": "records",
        "Acc@0.5": 4,
        "mIoU": 4,
        "refusal recall": 1,
        "VQA": 4,
        "VQA colour": 1,
        "VQA count": 3,
    }
