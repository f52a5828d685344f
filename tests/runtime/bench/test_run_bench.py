"""`edgetune-run bench` as a process, where nothing but the runtime can be imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgetune.cli import cli
from edgetune_runtime import Session
from edgetune_runtime.manifest import sha256_file, sha256_tree
from packages import write_package

SMALL = ("--max-new-tokens", "8", "--threads", "1", "--warmup", "0")
ABSENT = ("torch", "transformers", "psutil", "click", "tqdm", "onnx", "edgetune", "edgetune_bench", "huggingface_hub")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four records on two pictures."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(1)
    for name in ("a", "b"):
        coarse = Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        coarse.resize((128, 96), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    records = [
        {"image": "a.png", "text": "the clock", "bbox": [10, 20, 90, 80]},
        {"image": "b.png", "text": "the owl", "bbox": [5, 5, 60, 60]},
        {"image": "b.png", "text": "the cactus", "bbox": []},
        {"image": "a.png", "question": "What colour is it?", "answer": "red"},
    ]
    (folder / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "eval.jsonl"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which every Python process, workers too, finds none of `ABSENT`."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "sitecustomize.py").write_text(f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))}


def bench(*arguments: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune_runtime.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def written(
    qwen3_vl_bundle: Path,
    int4_bundle: Path,
    data: Path,
    alone: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("out") / "device.json"
    rows = (f"fp32={qwen3_vl_bundle}", f"int4={int4_bundle}", "--baseline", qwen3_vl_bundle)
    return output, bench(*rows, "--data", data, "--output", output, *SMALL, environment=alone)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_it_writes_what_edgetune_bench_writes(
    written: tuple[Path, subprocess.CompletedProcess[str]],
    qwen3_vl_bundle: Path,
    int4_bundle: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    output, done = written
    assert done.returncode == 0, done.stderr
    rows = [f"fp32={qwen3_vl_bundle}", f"int4={int4_bundle}", "--baseline", str(qwen3_vl_bundle)]
    arguments = ["bench", *rows, "--data", str(data), "--output", str(tmp_path / "desk"), *SMALL]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    here, there = read(tmp_path / "desk" / "results.json"), read(output)
    assert here.keys() == there.keys()
    for key in ("schema", "data", "inputs", "baseline", "statistics", "options"):
        assert here[key] == there[key], key
    assert there["inputs"]["data"]["sha256"] == sha256_file(data)
    assert there["inputs"]["row int4"]["sha256"] == sha256_tree(int4_bundle)
    for ours, theirs in zip(here["rows"], there["rows"], strict=True):
        answers = theirs.pop("answers")
        assert ours.keys() == theirs.keys()
        assert ours["size_bytes"] == theirs["size_bytes"]
        assert (ours["ground"], ours["vqa"], ours.get("delta")) == (
            theirs["ground"],
            theirs["vqa"],
            theirs.get("delta"),
        )
        predictions = (tmp_path / "desk" / "predictions" / f"{ours['name']}.jsonl").read_text().splitlines()
        assert [json.loads(line)["raw"] for line in predictions] == [answer["raw"] for answer in answers]


def test_the_gate_and_merge_read_it(written: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    output, _ = written
    gate = ["gate", str(output), "--max-p95-ms", "1e6", "--max-memory-mb", "1", "--json"]
    done = CliRunner().invoke(cli, gate)
    assert done.exit_code == 1, done.output
    outcomes = {check["name"]: check["outcome"] for check in json.loads(done.stdout)["checks"]}
    assert outcomes == {"runs": "pass", "p95": "pass", "memory": "fail"}
    merged = CliRunner().invoke(cli, ["bench", "merge", str(output), "--output", str(tmp_path / "m")])
    assert merged.exit_code == 0, merged.output
    assert [row["machine"] for row in read(tmp_path / "m" / "results.json")["rows"]] == ["device", "device"]


def test_it_tells_a_person_what_it_measured(written: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    lines = written[1].stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fp32", "int4"]
    assert "Acc@0.5" in lines[0] and "MB of memory" in lines[0]
    assert [path.name for path in written[0].parent.iterdir()] == ["device.json"]


def test_a_row_that_cannot_run_says_why_and_the_others_go_on(
    qwen3_vl_bundle: Path, data: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(qwen3_vl_bundle, tmp_path / "odd")
    manifest = json.loads((tmp_path / "odd" / "manifest.json").read_text())
    manifest["result"]["bundle"]["format"] = "sorcery"
    (tmp_path / "odd" / "manifest.json").write_text(json.dumps(manifest))
    output = tmp_path / "r.json"
    done = bench(tmp_path / "odd", qwen3_vl_bundle, "--data", data, "--output", output, *SMALL, environment=alone)
    assert done.returncode == 1
    assert "error: 1 of 2 rows failed: odd" in done.stderr
    odd, good = read(output)["rows"]
    assert (odd["status"], good["status"]) == ("failed", "ok")
    assert "sorcery" in odd["reason"]
    assert "sorcery" in done.stdout


def test_an_engine_that_is_not_there_is_the_rows_reason(
    qwen3_vl_bundle: Path, data: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    arguments = (qwen3_vl_bundle, "--data", data, "--output", output, "--engine", "warp", *SMALL)
    done = bench(*arguments, environment=alone)
    assert done.returncode == 1
    assert "warp" in read(output)["rows"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "--output", "{out}/x/r.json"], "no such folder"),
        (["{bundle}", "--output", "{out}"], "is a folder"),
        (["{out}", "--output", "{out}/r.json"], "not a bundle"),
        (["{bundle}", "{bundle}", "--output", "{out}/r.json"], "named twice"),
        (["{bundle}", "--output", "{out}/r.json", "--rounds", "9"], "--rounds 9: there are only 4 records"),
        (["{bundle}", "--output", "{out}/r.json", "--limit", "0"], "must be a whole number from 1 on"),
        (["{bundle}", "--output", "{out}/r.json", "--max-pixels", "200k,4K"], "'4K' is not an area in pixels, such as"),
        (["{bundle}", "--output", "{out}/r.json", "--shard", "3/2"], "shard 3/2: there is no shard 3 of 2"),
        (["{bundle}", "--output", "{out}/r.json", "--shard", "1/3"], "shard 1/3: there are only 2 pictures to divide"),
        (["{bundle}", "--output", "{data}"], "eval.jsonl: exists"),
        (["{bundle}", "--output", "{out}/r.json", "--stall", "nan"], "--stall nan: must be a number of seconds from 1"),
        (["{bundle}", "--output", "{out}/r.json", "--warmup", "-1"], "--warmup -1: must be 0 or more"),
        (["a\x1b[31m={bundle}", "--output", "{out}/r.json"], "is not the name of a row"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    arguments: list[str], message: str, qwen3_vl_bundle: Path, data: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    places = {"bundle": qwen3_vl_bundle, "data": data, "out": tmp_path}
    done = bench(*(text.format(**places) for text in arguments), "--data", data, environment=alone)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def gpu_engine(alone: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose workers find an engine that refuses a number of threads on "cuda", as TensorRT's does.

    It is a distribution of its own and computes on the CPU, with the runtime's ONNX loader.
    """
    folder = tmp_path_factory.mktemp("engine")
    module = (
        "from edgetune_runtime.backends.onnx.engine import OnnxBackend\n"
        "from edgetune_runtime.errors import InputError\n"
        "class Engine(OnnxBackend):\n"
        "    @classmethod\n"
        "    def load(cls, bundle, *, device='cpu', threads=None):\n"
        "        if threads is not None: raise InputError(f'{threads} threads on {device}')\n"
        "        return super().load(bundle, device='cpu', threads=1)\n"
    )
    write_package(folder, {"edgetune.backends": {"gpu": "gpu_engine:Engine"}}, {"gpu_engine.py": module})
    return alone | {"PYTHONPATH": os.pathsep.join((str(folder), alone["PYTHONPATH"]))}


def test_on_a_gpu_the_engine_chooses_its_threads_unless_they_are_given(
    qwen3_vl_bundle: Path, data: Path, gpu_engine: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    arguments = (f"gpu={qwen3_vl_bundle}", "--data", data, "--output", output, "--device", "cuda", "--engine", "gpu")
    few = ("--limit", "1", "--max-new-tokens", "2", "--warmup", "0")
    done = bench(*arguments, *few, environment=gpu_engine)
    assert done.returncode == 0, done.stderr
    assert (read(output)["rows"][0]["status"], read(output)["options"]["threads"]) == ("ok", None)
    bench(*arguments, *few, "--threads", "1", "--force", environment=gpu_engine)
    assert read(output)["rows"][0]["reason"] == "1 threads on cuda"


def test_more_threads_than_the_machine_can_use_are_refused_with_the_number(
    qwen3_vl_bundle: Path, data: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    most = 4 * len(os.sched_getaffinity(0))
    for threads in (most + 1, 2**31, 10**30):
        output = tmp_path / "r.json"
        done = bench(qwen3_vl_bundle, "--data", data, "--output", output, "--threads", threads, environment=alone)
        assert done.returncode == 2
        assert f"{threads} threads: at most {most}" in done.stderr
        assert not output.exists()


def test_pictures_are_bounded_on_a_device_and_at_the_desk(
    qwen3_vl_bundle: Path, data: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    bound = 64 * 64
    few = ("--data", str(data), "--limit", "1", "--max-pixels", f"{bound},6k", *SMALL)
    done = bench(qwen3_vl_bundle, *few, "--output", tmp_path / "device.json", environment=alone)
    assert done.returncode == 0, done.stderr
    desk = tmp_path / "desk"
    arguments = ["bench", str(qwen3_vl_bundle), *few, "--output", str(desk)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    here, there = read(desk / "results.json"), read(tmp_path / "device.json")
    assert here["options"]["max_pixels"] == there["options"]["max_pixels"] == [bound, 6000]
    for rows in (here["rows"], there["rows"]):
        assert [row["name"] for row in rows] == [f"{qwen3_vl_bundle.name}@{size}" for size in ("4096", "6k")]
        assert [(row["max_pixels"], row["image_tokens"]) for row in rows] == [(bound, 2), (6000, 4)]
    page = (desk / "report.html").read_text()
    assert "pictures of at most 4,096 and 6,000 pixels" in page and "Image-token budget" in page

    with Session.load(qwen3_vl_bundle, threads=1) as whole, Session.load(qwen3_vl_bundle, max_pixels=bound) as bounded:
        texts = [
            session.answer(data.parent / "a.png", session.request("the clock"), max_new_tokens=8).text
            for session in (whole, bounded)
        ]
    assert texts[0] != texts[1]
    assert there["rows"][0]["answers"][0]["raw"] == texts[1]
    said = (desk / "predictions" / f"{qwen3_vl_bundle.name}@4096.jsonl").read_text()
    assert json.loads(said)["raw"] == texts[1]


def test_a_bound_over_the_bundles_own_is_the_rows_reason(
    qwen3_vl_bundle: Path, data: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    arguments = (qwen3_vl_bundle, "--data", data, "--output", output, "--max-pixels", 10**6, *SMALL)
    assert bench(*arguments, environment=alone).returncode == 1
    assert "max_pixels 1000000 is over the 65536 that it was exported for" in read(output)["rows"][0]["reason"]
