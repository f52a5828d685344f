"""Several formats in one call: processes of their own, one calibration, and a failure costs only its own format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli import cli
from edgetune_runtime.bundle import Bundle
from weight_sets import build_weight_set


def export(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_set_in_two_formats_and_a_second_run_keeps_both(qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    common: list[str | Path] = [
        "--checkpoint",
        qwen3_vl,
        "--weights",
        weight_set,
        "--output",
        tmp_path / "out",
        "--max-length",
        "300",
    ]
    first = export(*common, "--formats", "onnx,gptq")
    assert first.returncode == 0, first.stderr
    bundles = {name: Bundle.load(tmp_path / "out" / name) for name in ("onnx", "gptq")}
    assert {name: bundle.format for name, bundle in bundles.items()} == {"onnx": "onnx", "gptq": "gptq"}
    assert {bundle.limits.max_length for bundle in bundles.values()} == {300}
    sets = [bundle.manifest["result"]["bundle"]["calibration"]["sha256"] for bundle in bundles.values()]
    assert sets[0] == sets[1]
    assert [line.split()[0] for line in first.stdout.splitlines()[-3:-1]] == ["onnx", "gptq"]
    assert "gptq is read by SGLang" in first.stdout
    assert "warning: this bundle is refused by vLLM 0.32.0" in first.stderr
    second = export(*common, "--formats", "onnx,gptq", "--json")
    told: dict[str, Any] = json.loads(second.stdout)
    assert {name: result["skipped"] for name, result in told["formats"].items()} == {"onnx": True, "gptq": True}
    assert told["failed"] == {}


def test_a_failing_format_loses_only_itself(qwen3_vl: Path, weight_set: Path, tmp_path: Path) -> None:
    """The place of one bundle holds a file of the user's."""
    (tmp_path / "out" / "gptq").mkdir(parents=True)
    (tmp_path / "out" / "gptq" / "mine.txt").write_text("kept")
    common: list[str | Path] = ["--checkpoint", qwen3_vl, "--weights", weight_set, "--output", tmp_path / "out"]
    done = export(*common, "--formats", "gptq,onnx")
    assert done.returncode == 2
    assert f"error: {tmp_path / 'out' / 'gptq'}: holds files that edgetune did not write" in done.stderr
    assert "gptq: failed with exit code 2" in done.stderr
    assert Bundle.load(tmp_path / "out" / "onnx").format == "onnx"
    assert (tmp_path / "out" / "gptq" / "mine.txt").read_text() == "kept"


def test_data_calibrates_once_beside_the_bundles(qwen3_vl: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (96, 64), (200, 30, 60)).save(tmp_path / "a.png")
    record = {"image": "a.png", "text": "the red cup", "bbox": [4, 5, 60, 50]}
    (tmp_path / "calib.jsonl").write_text(json.dumps(record))
    common: list[str | Path] = [
        "--checkpoint",
        qwen3_vl,
        "--data",
        tmp_path / "calib.jsonl",
        "--output",
        tmp_path / "out",
    ]
    planned = export(*common, "--formats", "onnx", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.splitlines() == [
        f"{tmp_path / 'out' / 'weights'}: would be calibrated",
        f"{tmp_path / 'out' / 'onnx'}: would be written",
    ]
    assert not (tmp_path / "out").exists()
    done = export(*common, "--formats", "onnx", "--vision-precision", "int8-static")
    assert done.returncode == 0, done.stderr
    bundle = Bundle.load(tmp_path / "out" / "onnx").manifest["result"]["bundle"]
    manifest = json.loads((tmp_path / "out" / "weights" / "manifest.json").read_text())
    assert manifest["stage"] == "calibrate"
    assert bundle["calibration"]["samples"] == 1 and bundle["calibration"]["method"] == "gptq"
    assert bundle["vision_precision"] == "int8-static"
    assert bundle["parity"]["drift"]["records"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--formats", "onnx,gtpq"], "did you mean 'gptq'?"),
        (["--formats", ","], "no value given"),
        (["--format", "onnxx"], "did you mean 'onnx'?"),
        (["--format", "gptq"], "format gptq is written from a weight set"),
        (["--format", "onnx", "--formats", "onnx"], "--format and --formats exclude each other"),
        (["--format", "onnx", "--data", "calib.jsonl"], "--data needs --formats"),
        (["--formats", "onnx", "--data", "a", "--weights", "b"], "--weights and --data exclude each other"),
        (["--vision-precision", "int8-static"], "static int8 vision needs the ranges"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    qwen3_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", "--checkpoint", str(qwen3_vl), "--output", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_a_mistyped_format_gets_a_suggestion(
    qwen3_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--checkpoint", str(qwen3_vl), "--output", str(tmp_path), "--formats", "gtpq"])
    assert "did you mean 'gptq'?" in capsys.readouterr().err


def test_a_bundle_is_no_place_for_bundles(
    qwen3_vl: Path, weight_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = build_weight_set(qwen3_vl, tmp_path / "set")
    with pytest.raises(SystemExit):
        cli.main(["export", "--checkpoint", str(qwen3_vl), "--output", str(place), "--formats", "onnx"])
    assert "is a bundle or another result itself" in capsys.readouterr().err
