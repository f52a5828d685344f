"""train, calibrate, eval and bench read foreign formats in place."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open

from data.converting import GOLDEN, pictures, write_lines
from edgetune.cli import cli
from edgetune_runtime.manifest import sha256_file
from edgetune_runtime.records import read_records

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


def test_train_learns_from_coco_and_names_the_users_own_file(tmp_path: Path, coco: Path, qwen3_vl: Path) -> None:
    out = tmp_path / "out"
    quick = ("--epochs", "1", "--batch-size", "3", "--rank", "2", "--precision", "fp32", "--trainer-arg", "max_steps=2")
    result = run("train", "--checkpoint", qwen3_vl, "--data", coco, "--output", out, *quick, "--json")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"]["data"] == {"path": str(coco), "sha256": sha256_file(coco)}
    assert (manifest["result"]["steps"], manifest["result"]["records"]) == (2, 3)
    assert "edgetune-data-" not in (out / "manifest.json").read_text()
    with safe_open(out / "adapter_model.safetensors", framework="np") as adapter:
        learned = [adapter.get_tensor(name) for name in adapter.keys() if ".lora_B." in name]  # noqa: SIM118
    assert learned and all(matrix.any() for matrix in learned)  # each begins as zeros


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
    options = ("--max-new-tokens", "4", "--warmup", "0", "--threads", "1", "--limit", "1")
    result = run("bench", TINY, "--data", coco, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr


CASES = """
import sys
from pathlib import Path
from edgetune_core.weightset import WeightSet
from edgetune_export.check.reference import record_cases
from edgetune_export.checkpoint import open_checkpoint
cases, source = record_cases(open_checkpoint(Path(sys.argv[1])), WeightSet.load(Path(sys.argv[2])))
print(*(case.name for case in cases), source, sep="\\n")
"""


def test_calibrate_on_a_foreign_data_set_leaves_records_that_export_reads(tmp_path: Path, coco: Path) -> None:
    out = tmp_path / "out"
    result = run("calibrate", "--checkpoint", TINY, "--data", coco, "--output", out, "--method", "rtn")
    assert result.exit_code == 0, result.stderr
    command = [sys.executable, "-c", CASES, str(TINY), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [*PLACES, str(out / "samples.jsonl")], done.stderr


KEEP = """
import sys
from pathlib import Path
from edgetune_data.copies import canonical_file, keep_samples
data = canonical_file(Path(sys.argv[1]))
print(keep_samples(data, {"inside.jsonl:1"}, Path(sys.argv[2])))
"""


def test_pictures_inside_the_data_are_kept_with_the_samples(tmp_path: Path) -> None:
    """Another process keeps them, whose temporary files are gone when it ends."""
    pictures(tmp_path)
    shelf = (tmp_path / "shelf.png").read_bytes()
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A shelf."}]
    record = {"messages": turns, "images": [base64.b64encode(shelf).decode()]}
    plain = write_lines(tmp_path / "plain.jsonl", {"image": "desk.png", "text": "A desk."})
    for path in (write_lines(tmp_path / "inside.jsonl", record, record), plain):
        command = [sys.executable, "-c", KEEP, str(path), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        kept = tmp_path / "samples.jsonl" if path.stem == "inside" else None
        assert done.stdout == f"{kept}\n", done.stderr
    [found] = read_records(tmp_path / "samples.jsonl")
    assert (found.source, found.answer) == ("inside.jsonl:1", "A shelf.")
    assert found.image.parent == tmp_path / "samples" and found.image.read_bytes() == shelf


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
