"""The second model through the whole chain: tuned, merged, calibrated, and compared with itself in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import make_data
from builders import TINY_INTERNVL
from edgetune_runtime.bundle import Bundle
from families.conftest import run

ROWS = {
    "fp32": ["--precision", "fp32"],
    "int8": ["--precision", "int8"],
    "int4": ["--format", "onnx"],
    "plain": ["--format", "onnx", "--dialect", "plain"],
    "gptq": ["--format", "gptq"],
    "awq": ["--format", "awq"],
    "ct": ["--format", "compressed-tensors"],
    "trt": ["--format", "trt"],
}
"""Folder of each bundle, and what it is exported with; formats come from the weight set."""


@pytest.mark.timeout(1200)
def test_tiles_positions_and_tags_keep_their_boxes_in_every_format(tmp_path: Path) -> None:
    data, adapter, merged, weights = (tmp_path / name for name in ("data", "adapter", "merged", "weights"))
    make_data.main(["--output", str(data), "--train", "16", "--test", "10", "--queries", "3", "--seed", "7"])
    train, test = data / "train.jsonl", data / "test.jsonl"
    training = ["--batch-size", 8, "--learning-rate", 2e-4, "--vision-lora"]
    run("train", "--checkpoint", TINY_INTERNVL, "--data", train, "--output", adapter, *training)
    run("merge", "--checkpoint", TINY_INTERNVL, "--adapter", adapter, "--output", merged)
    solving = ["--eval", test, "--samples", 16, "--group-size", 64]
    run("calibrate", "--checkpoint", merged, "--data", train, "--output", weights, *solving)
    for name, chosen in ROWS.items():
        source = ["--weights", weights] if "--format" in chosen else []
        run("export", "--checkpoint", merged, *source, *chosen, "--output", tmp_path / name)
    # Engines of TensorRT need a GPU; export ran their graphs and compared them with the weight set.
    exact = Bundle.load(tmp_path / "trt").manifest["result"]["bundle"]["parity"]["exact"]
    assert exact["answers_equal"] == exact["answers"] > 0

    on_cpu = [tmp_path / name for name in ROWS if name != "trt"]
    place = ["--baseline", merged, "--data", test, "--threads", 1, "--output", tmp_path / "bench"]
    run("bench", merged, *on_cpu, *place)
    rows = json.loads((tmp_path / "bench" / "results.json").read_text())["rows"]
    assert {row["name"]: row["status"] for row in rows} == dict.fromkeys(["merged", *(p.name for p in on_cpu)], "ok")
    found = {row["name"]: row["ground"] for row in rows}
    for name, ground in found.items():
        assert ground["acc50"] >= 0.9 and ground["miou"] >= 0.85 and ground["parse_failures"] == 0, name
    # The set of int4 weights is one, however it is spelled.
    assert max(abs(found[name]["acc50"] - found["int4"]["acc50"]) for name in ("plain", "gptq", "awq", "ct")) <= 0.1
