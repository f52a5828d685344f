"""train, calibrate, eval and bench read foreign formats in place."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from data.converting import GOLDEN, pictures, write_lines
from edgetune.cli import cli
from edgetune_runtime.manifest import sha256_file

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's example: three records of two pictures."""
    pictures(tmp_path)
    path = tmp_path / "instances.json"
    path.write_bytes((GOLDEN / "coco" / "input.json").read_bytes())
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_train_reads_coco(tmp_path: Path, coco: Path) -> None:
    result = run("train", "--checkpoint", TINY, "--data", coco, "--output", tmp_path / "out", "--dry-run")
    assert result.stdout == f"{tmp_path / 'out'}: would train on 3 records\n", result.stderr


PLACES = ["instances.json#139/cup", "instances.json#139/book", "instances.json#285/book"]


def test_eval_names_the_places_of_the_users_own_file(tmp_path: Path, coco: Path) -> None:
    out = tmp_path / "out"
    result = run("eval", TINY, "--data", coco, "--output", out, "--max-new-tokens", "8", "--pictures", "1", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["data"]["records"], told["data"]["path"]) == (3, str(coco))
    assert told["inputs"]["data"] == {"path": str(coco), "sha256": sha256_file(coco)}
    written = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".jsonl", ".html", ".md")]
    assert all("edgetune-data-" not in text for text in written)  # where the copy for the workers was
    assert any(PLACES[0] in text for text in written)


def test_bench_runs_on_coco(tmp_path: Path, coco: Path) -> None:
    options = ("--max-new-tokens", "4", "--warmup", "0", "--threads", "1")
    result = run("bench", TINY, "--data", coco, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr


def test_calibrate_on_a_foreign_data_set_leaves_records_that_export_reads(tmp_path: Path, coco: Path) -> None:
    """Also pictures that came inside the data, whose temporary files are gone by then."""
    shelf = base64.b64encode((tmp_path / "shelf.png").read_bytes()).decode()
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A shelf."}]
    inside = tmp_path / "inside.jsonl"
    inside.write_text(json.dumps({"messages": turns, "images": [shelf]}) + "\n")
    for data, places in ((coco, PLACES), (inside, ["inside.jsonl:1"])):
        out = tmp_path / data.stem
        result = run("calibrate", "--checkpoint", TINY, "--data", data, "--output", out, "--method", "rtn")
        assert result.exit_code == 0, result.stderr
        code = f"""
import sys
from pathlib import Path
from edgetune_core.weightset import WeightSet
from edgetune_export.check.reference import record_cases
from edgetune_export.checkpoint import load_checkpoint
cases, source = record_cases(load_checkpoint(Path({str(TINY)!r})), WeightSet.load(Path({str(out)!r})))
print(*(case.name for case in cases), source, sep="\\n")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == [*places, str(out / "samples.jsonl")], done.stderr


def test_calibrate_on_canonical_records_names_the_file_itself(tmp_path: Path) -> None:
    pictures(tmp_path)
    path = write_lines(tmp_path / "data.jsonl", {"image": "desk.png", "text": "cup", "bbox": [1, 2, 30, 40]})
    result = run("calibrate", "--checkpoint", TINY, "--data", path, "--output", tmp_path / "out", "--method", "rtn")
    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "out" / "samples.jsonl").exists()


def test_a_conversation_is_refused_at_its_own_place(tmp_path: Path) -> None:
    pictures(tmp_path)
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A desk."}]
    (tmp_path / "set").mkdir()
    for path in (tmp_path / "llava.json", tmp_path / "set" / "data.jsonl"):
        image = "../desk.png" if path.parent.name == "set" else "desk.png"
        record = {
            "id": "7",
            "image": image,
            "conversations": [*turns, *(turn | {"value": turn["value"].removeprefix("<image>")} for turn in turns)],
        }
        path.write_text(json.dumps([record] if path.suffix == ".json" else record) + "\n")
    for data, place in ((tmp_path / "llava.json", "llava.json#7"), (tmp_path / "set", "data.jsonl:1")):
        result = run("eval", TINY, "--data", data)
        assert result.exit_code == 2
        assert place in result.stderr and "edgetune-data-" not in result.stderr
        assert "a conversation of 4 turns about 1 pictures has no score" in result.stderr


def test_a_bad_record_is_named_at_its_own_place(tmp_path: Path, coco: Path) -> None:
    coco.write_text(coco.read_text().replace("[50, 20, 30, 40]", "[150, 20, 30, 40]"))
    result = run("train", "--checkpoint", TINY, "--data", coco, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {coco}#139/cup: bbox [150.0, 20.0, 180.0, 60.0] leaves the 160x120 image")
