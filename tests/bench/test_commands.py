"""`edgetune eval` and `edgetune bench` as a user runs them, with real models, a damaged bundle and a killed worker."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edgetune.cli import cli
from edgetune.commands.bench import command as bench_verb
from edgetune_runtime.bench.command import build_parser
from edgetune_runtime.bench.options import Options
from edgetune_runtime.manifest import sha256_file, sha256_tree, verify_files
from processes import start

SMALL = ("--max-new-tokens", "8", "--threads", "1")


def edgetune(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture(scope="module")
def damaged(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with one byte of its largest file changed."""
    folder = tmp_path_factory.mktemp("damaged") / "damaged"
    shutil.copytree(bundle, folder)
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def bench(
    qwen3_vl: Path, bundle: Path, damaged: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """One comparison in two rounds, the damaged bundle first, and how the verb ended."""
    output = tmp_path_factory.mktemp("bench") / "bench"
    rows = [damaged, f"onnx={bundle}", f"torch={qwen3_vl}"]
    done = edgetune("bench", *rows, "--data", data, "--output", output, "--rounds", 2, "--pictures", 2, *SMALL)
    return output, done


def test_rows_keep_their_order_and_a_damaged_bundle_is_a_row_with_its_reason(bench: tuple[Path, Result]) -> None:
    output, done = bench
    rows = results(output)["rows"]
    assert [(row["name"], row["status"]) for row in rows] == [("damaged", "failed"), ("onnx", "ok"), ("torch", "ok")]
    assert rows[0]["exit_code"] == 2
    assert "sha256 differs" in rows[0]["reason"]
    assert done.exit_code == 1
    assert "1 of 3 rows failed: damaged" in done.stderr
    assert f"damaged: failed (exit code 2): {rows[0]['reason']}" in done.stdout
    assert rows[0]["reason"] in (output / "table.md").read_text()


def test_the_only_checkpoint_is_the_baseline_and_an_exact_bundle_does_not_differ(bench: tuple[Path, Result]) -> None:
    found = results(bench[0])
    assert found["baseline"] == "torch"
    onnx, torch = found["rows"][1:]
    assert torch["baseline"]
    assert "delta" not in torch
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert onnx["delta"]["miou"] == onnx["delta"]["acc50"] == nothing | {"records": 3, "images": 3}
    assert onnx["delta"]["mcnemar"] == {"only_baseline": 0, "only_row": 0, "p": 1.0}
    assert onnx["ground"] == torch["ground"]


def test_rounds_cover_every_record_once_in_record_order(bench: tuple[Path, Result]) -> None:
    for name in ("onnx", "torch"):
        lines = (bench[0] / "predictions" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["source"] for line in lines] == [f"eval.jsonl:{number}" for number in range(1, 7)]


def test_results_say_what_was_measured_and_where(
    bench: tuple[Path, Result], bundle: Path, qwen3_vl: Path, data: Path
) -> None:
    found = results(bench[0])
    assert found["inputs"]["data"]["sha256"] == sha256_file(data)
    assert found["inputs"]["row onnx"]["sha256"] == sha256_tree(bundle)
    assert found["inputs"]["row torch"]["sha256"] == sha256_tree(qwen3_vl)
    assert found["machine"]["usable_cores"] == len(psutil.Process().cpu_affinity())
    assert found["machine"]["memory_bytes"] == psutil.virtual_memory().total
    assert {"python", "torch", "onnxruntime", "edgetune"} <= found["versions"].keys()
    assert found["options"]["threads"] == 1
    assert found["command"]
    verify_files(bench[0])


def test_a_report_lies_beside_the_results(bench: tuple[Path, Result]) -> None:
    output, done = bench
    page = (output / "report.html").read_text()
    for row in results(output)["rows"]:
        assert row["name"] in page
    assert results(output)["rows"][0]["reason"] in page
    assert page.count("<use ") % 2 == 0  # the baseline and the one other row that ran, for each picture
    assert f"report: {output / 'report.html'}" in done.stderr


def test_pictures_show_the_rows_that_ran(bench: tuple[Path, Result]) -> None:
    with Image.open(bench[0] / "pictures.png") as sheet:
        # Three columns (truth, onnx, torch) of the widest picture, 160 pixels, with margins of 8.
        assert sheet.width == 8 + 3 * (160 + 8)


def test_a_result_with_a_failed_row_is_not_kept(
    bench: tuple[Path, Result], damaged: Path, bundle: Path, data: Path, tmp_path: Path
) -> None:
    """What a row lacked may have been installed since, so asking again runs again; a whole result is kept."""
    output = tmp_path / "again"
    arguments = ("--data", data, "--limit", 1, "--output", output, *SMALL)
    edgetune("bench", damaged, *arguments)
    first = results(output)["created"]
    time.sleep(1.1)  # creation times have a resolution of a second
    assert edgetune("bench", damaged, *arguments).exit_code == 1
    assert results(output)["created"] != first
    assert edgetune("bench", bundle, *arguments).exit_code == 0
    whole = results(output)["created"]
    time.sleep(1.1)
    kept = edgetune("bench", bundle, *arguments)
    assert kept.exit_code == 0
    assert "kept" in kept.stderr
    assert results(output)["created"] == whole


def test_a_killed_worker_is_a_row_and_the_others_go_on(bundle: Path, data: Path, tmp_path: Path) -> None:
    big = _repeated(data, tmp_path / "big.jsonl", 50)
    shutil.copytree(bundle, tmp_path / "second")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "edgetune", "bench", f"first={bundle}", str(tmp_path / "second")]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start([*command, "--data", str(big), "--output", str(output), *SMALL], **outputs)
    worker = _worker(process.pid, str(bundle))
    worker.kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    first, second = results(output)["rows"]
    assert (first["status"], first["exit_code"]) == ("failed", -9)
    assert "SIGKILL" in first["reason"]
    assert second["status"] == "ok"
    assert "1 of 2 rows failed: first" in errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("program", ["edgetune", "edgetune_runtime.cli"], ids=["edgetune", "edgetune-run"])
def test_a_stopped_bench_leaves_no_worker_and_no_result(
    bundle: Path, data: Path, tmp_path: Path, program: str, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "out"
    big = _repeated(data, tmp_path / "big.jsonl", 1000)
    command = [sys.executable, "-m", program, "bench", str(bundle), "--data", str(big), "--output", str(output)]
    process = start([*command, *SMALL], stderr=subprocess.PIPE)
    worker = _worker(process.pid, str(bundle))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    # A worker whose start was interrupted ends by itself with its first answer, long before its last.
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["big.jsonl"]


def _repeated(data: Path, path: Path, times: int) -> Path:
    """The records of `data`, over and over."""
    records = [json.loads(line) for line in data.read_text().splitlines()]
    lines = [json.dumps(record | {"image": str(data.parent / record["image"])}) + "\n" for record in records]
    path.write_text("".join(lines * times))
    return path


def _worker(parent: int, mark: str) -> psutil.Process:
    """Wait for the worker process that a verb starts."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for child in psutil.Process(parent).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
                if "edgetune_runtime.bench.worker" in child.cmdline() and mark in child.cmdline():
                    return child
        time.sleep(0.02)
    raise AssertionError("no worker was started")


def test_a_failed_baseline_leaves_the_others_without_differences(
    bundle: Path, damaged: Path, data: Path, tmp_path: Path
) -> None:
    # --report is another name for --output.
    arguments = ("--baseline", damaged, "--data", data, "--limit", 2, "--report", tmp_path / "out", *SMALL)
    done = edgetune("bench", bundle, *arguments)
    assert done.exit_code == 1
    assert [(row["name"], "delta" in row) for row in results(tmp_path / "out")["rows"]] == [
        ("damaged", False),
        (bundle.name, False),
    ]
    assert "damaged: is the baseline, so there are no differences" in done.stdout


def test_eval_writes_predictions_that_add_up_to_its_table(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "eval"
    done = edgetune("eval", qwen3_vl, "--data", data, "--output", output, "--json", *SMALL)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed == results(output)
    name = qwen3_vl.name
    predictions = [json.loads(line) for line in (output / "predictions" / f"{name}.jsonl").read_text().splitlines()]
    present = [row["iou"] for row in predictions if row["kind"] == "ground" and row["iou"] is not None]
    assert printed["rows"][0]["ground"]["miou"] == pytest.approx(sum(present) / len(present))
    assert json.loads((output / "manifest.json").read_text())["stage"] == "eval"


def test_eval_without_output_prints_and_writes_nothing(bundle: Path, data: Path, tmp_path: Path) -> None:
    before = set(data.parent.iterdir())
    done = edgetune("eval", bundle, "--data", data, "--limit", 2, *SMALL)
    assert done.exit_code == 0, done.output
    assert "Acc@0.5" in done.stdout
    assert set(data.parent.iterdir()) == before


def test_a_bundle_that_was_calibrated_on_the_very_records_is_remarked(bundle: Path, data: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    shutil.copytree(bundle, told)
    manifest = json.loads((told / "manifest.json").read_text())
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    manifest["result"]["bundle"]["calibration"] = {"data": {"data": digest}}
    (told / "manifest.json").write_text(json.dumps(manifest))
    remark = "calibrated on these very records, so its accuracy on them says nothing about new ones"
    assert f"told: {remark}\n" in edgetune("eval", told, "--data", data, "--limit", 1, *SMALL).stderr
    assert remark not in edgetune("eval", bundle, "--data", data, "--limit", 1, *SMALL).stderr


def test_a_dry_run_starts_nothing(bundle: Path, data: Path, tmp_path: Path) -> None:
    for arguments in (
        ("eval", bundle),
        ("eval", bundle, "--output", tmp_path / "e"),
        ("bench", bundle, "--output", tmp_path / "b"),
    ):
        done = edgetune(*arguments, "--data", data, "--dry-run")
        assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "0.jpg", "text": "x", "bbox": [1, 2, 3', ":2: not valid JSON"),
        ('{"image": "gone.jpg", "text": "x", "bbox": []}', ":2: "),
        ('{"image": "0.jpg", "text": "x", "bbox": [50, 10, 20, 30]}', "x1 >= x2"),
        ('{"image": "0.jpg", "text": "x", "bbox": [0, 0, 999, 30]}', "leaves the"),
    ],
)
def test_broken_records_stop_before_anything_runs(
    bundle: Path, data: Path, tmp_path: Path, line: str, message: str
) -> None:
    for image in data.parent.glob("*.jpg"):
        shutil.copy(image, tmp_path)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(data.read_text().splitlines()[0] + "\n" + line + "\n")
    done = edgetune("bench", bundle, "--data", broken, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "broken.jsonl:2: " in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_picture_that_breaks_off_is_found_before_anything_runs(bundle: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data.parent, tmp_path / "data")
    image = tmp_path / "data" / "2.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    done = edgetune("eval", bundle, "--data", tmp_path / "data" / data.name)
    assert done.exit_code == 2
    assert "2.jpg" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bench", "{bundle}", "--data", "{data}", "--output", "{out}", "--rounds", "7"],
            "--rounds 7: there are only 6",
        ),
        (["bench", "{bundle}", "{bundle}", "--data", "{data}", "--output", "{out}"], "named twice"),
        (["bench", "--data", "{data}", "--output", "{out}"], "Missing argument"),
        (["bench", "{bundle}", "--data", "{data}"], "Give one of --output and --report"),
        (["bench", "{bundle}", "--data", "{data}", "--output", "{out}", "--report", "{out}2"], "Give one of"),
        (["bench", "{out}/x", "--data", "{data}", "--output", "{out}"], "no such folder"),
        (["eval", "{bundle}", "--data", "{out}.jsonl"], "no such data file"),
        (["eval", "{bundle}", "--data", "{data}", "--adapter", "{bundle}"], "no adapter_config.json"),
        (["eval", "{bundle}", "--data", "{data}", "--pictures", "3"], "--pictures needs --output"),
        (["eval", "{bundle}", "--data", "{data}", "--device", "cdua"], "Did you mean 'cuda'?"),
    ],
)
def test_bad_arguments_are_one_line(
    bundle: Path, data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"bundle": bundle, "data": data, "out": tmp_path / "out"}
    done = edgetune(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_desk_and_a_device_measure_alike_unless_told_otherwise() -> None:
    """A row's options have one default each, whoever asks."""
    desk = {param.name: param.default for param in bench_verb.params if isinstance(param.default, int | float | str)}
    device = vars(build_parser().parse_args(["bundle", "--data", "d", "--output", "o"]))
    for name, value in Options().to_dict().items():
        option = "stall" if name == "stall_s" else name
        assert desk.get(option) == device[option] == value, name


@pytest.mark.parametrize("verb", ["run", "eval"])
def test_a_quantized_folder_without_its_manifest_says_what_is_missing(
    verb: str, qwen3_vl: Path, data: Path, tmp_path: Path
) -> None:
    """A bundle that was copied in part looks like a checkpoint whose weights need a library that is not here."""
    folder = tmp_path / "partial"
    shutil.copytree(qwen3_vl, folder)
    config = json.loads((folder / "config.json").read_text())
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    words = {"run": (folder, data.parent / "0.jpg", "a cup"), "eval": (folder, "--data", data, *SMALL)}
    done = edgetune(verb, *words[verb])
    assert done.exit_code == 3, done.output
    assert "its weights are quantized (gptq), which transformers cannot read here" in done.stderr
    assert "its manifest.json is missing" in done.stderr
    assert "Traceback" not in done.output
