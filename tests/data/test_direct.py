"""train, calibrate, eval and bench read foreign formats in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from data.converting import GOLDEN, pictures
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


def test_calibrate_reads_coco(tmp_path: Path, coco: Path) -> None:
    result = run("calibrate", "--checkpoint", TINY, "--data", coco, "--output", tmp_path / "out", "--dry-run")
    assert result.stdout == f"{tmp_path / 'out'}: would calibrate on 3 records\n", result.stderr


def test_eval_reads_coco(tmp_path: Path, coco: Path) -> None:
    result = run("eval", TINY, "--data", coco, "--output", tmp_path / "out", "--max-new-tokens", "8", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["data"]["records"], told["data"]["path"]) == (3, str(coco))
    assert told["inputs"]["data"] == {"path": str(coco), "sha256": sha256_file(coco)}


def test_bench_reads_coco(tmp_path: Path, coco: Path) -> None:
    result = run("bench", TINY, "--data", coco, "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.stderr


def test_a_bad_record_is_named_at_its_own_place(tmp_path: Path, coco: Path) -> None:
    coco.write_text(coco.read_text().replace("[50, 20, 30, 40]", "[150, 20, 30, 40]"))
    result = run("train", "--checkpoint", TINY, "--data", coco, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {coco}#139/cup: bbox [150.0, 20.0, 180.0, 60.0] leaves the 160x120 image")
