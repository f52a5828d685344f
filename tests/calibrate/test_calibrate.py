"""The verb as a user runs it: what it writes, what it refuses, and a killed process that is continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from builders import build_qwen3_vl
from calibrate.walks import load, put, second_moments
from edgetune.cli import cli
from edgetune_calibrate.batches import batch
from edgetune_calibrate.run import calibrate
from edgetune_calibrate.samples import calibration_set
from edgetune_calibrate.settings import CalibrateSettings
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.weightset import WeightSet
from edgetune_runtime.errors import InputError, MissingDependency
from edgetune_runtime.manifest import MANIFEST, sha256_tree
from edgetune_runtime.quant.blocks import BlockFormat
from processes import start, wait_until
from small_disk import run_on_small_disk

EDGETUNE = [sys.executable, "-m", "edgetune", "calibrate"]
RTN = ["--method", "rtn", "--group-size", "32"]


def command(checkpoint: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output), *RTN, *more]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["calibrate", *arguments])


def weights_of(folder: Path) -> dict[str, bytes]:
    """Return a set's files but the manifest, which holds times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(("family", "layers"), [("qwen3_vl", 4), ("qwen2_5_vl", 3), ("qwen2_vl", 2)])
def test_the_result_is_a_weight_set_with_its_origin(
    family: str, layers: int, data: Path, held_out: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(family)
    arguments = command(checkpoint, data, tmp_path / "set", "--eval", str(held_out), "--head", "8", "--json")
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert not told["skipped"]
    found = WeightSet.load(tmp_path / "set")
    names = [
        f"model.language_model.layers.{i}.{name}"
        for i in range(layers)
        for name in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    ]
    assert list(found.names) == [*names, "lm_head"]
    assert found.method == "rtn"
    assert {found.format(name) for name in names} == {BlockFormat(4, 32, symmetric=False)}
    assert found.format("lm_head") == BlockFormat(8, 32, symmetric=False)
    model = load(checkpoint)
    for name in found.names:
        original = model.get_submodule(name).get_parameter("weight")
        dequantized = torch.from_numpy(found.weight(name).dequantize())
        assert (dequantized - original).abs().max() < (0.1 if name != "lm_head" else 0.01) * original.abs().max()
    assert found.fields["checkpoint"] == {"path": str(checkpoint), "sha256": sha256_tree(checkpoint)}
    calibration = found.fields["calibration"]
    source = HubCheckpoint.open(checkpoint)
    samples = calibration_set(source, data, samples=None, seed=0).samples
    assert calibration["samples"] == 6
    assert calibration["tokens"] == sum(batch(each, source, torch.float32)["input_ids"].numel() for each in samples)
    assert set(calibration["error"]) == set(found.names)
    assert set(found.manifest["inputs"]) == {"checkpoint", "data", "eval"}
    assert invoke(*arguments[:-1]).stdout == f"{tmp_path / 'set'}: unchanged, nothing to do\n"


def test_reported_errors_are_shares_of_the_layers_output_energy(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    settings = CalibrateSettings(method="rtn", group_sizes=(32,))
    result = calibrate(qwen3_vl, data, tmp_path, settings)
    source, model, name = HubCheckpoint.open(qwen3_vl), load(qwen3_vl), "model.language_model.layers.0.self_attn.q_proj"
    inputs: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        for sample in calibration_set(source, data, samples=None, seed=0).samples:
            model(**batch(sample, source, torch.float32))
    part = WeightSet(tmp_path, {"result": result})
    weight = model.get_submodule(name).get_parameter("weight").detach().double()
    error = weight - torch.from_numpy(part.weight(name).dequantize())
    moments = second_moments(inputs)
    expected = float(((error @ moments) * error).sum() / ((weight @ moments) * weight).sum())
    assert result["weightset"]["calibration"]["error"][name] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_awq_keeps_the_norms_that_it_changed(
    family: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    done = invoke(*command(folder, data, tmp_path / "set", "--method", "awq", "--bits", "8"))
    assert done.exit_code == 0, done.output
    found = WeightSet.load(tmp_path / "set")
    model, quantized = load(folder), load(folder)
    layers = range(len(list(model.get_submodule("model.language_model.layers").children())))
    norms = ("input_layernorm", "post_attention_layernorm")
    assert set(found.overrides) == {f"model.language_model.layers.{i}.{norm}.weight" for i in layers for norm in norms}
    put(quantized, {name: found.weight(name) for name in found.names})
    for name in found.overrides:
        quantized.get_parameter(name).data.copy_(torch.from_numpy(found.override(name)))
    assert any(not torch.equal(quantized.get_parameter(name), model.get_parameter(name)) for name in found.overrides)
    source = HubCheckpoint.open(folder)
    inputs = batch(calibration_set(source, data, samples=1, seed=0).samples[0], source, torch.float32)
    with torch.no_grad():
        expected, logits = model(**inputs).logits, quantized(**inputs).logits
    assert (logits - expected).norm() < 0.1 * expected.norm()


def test_what_a_user_gets_wrong_is_one_line(qwen3_vl: Path, data: Path, held_out: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"

    def complaint(*arguments: str, code: int = 2) -> str:
        done = invoke(*arguments)
        assert done.exit_code == code
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) <= 2
        assert not out.exists()
        return done.stderr

    nothing = complaint("--checkpoint", str(qwen3_vl), "--output", str(out))
    assert nothing.startswith("error: no calibration data\nhint: give --data")
    assert "lose boxes" in nothing
    assert "its picture is also that of" in complaint(*command(qwen3_vl, data, out, "--eval", str(data)))
    assert "6 records, but 9 samples" in complaint(*command(qwen3_vl, data, out, "--samples", "9"))
    roles = complaint(*command(qwen3_vl, data, out, "--modality-weight", "image=1"))
    assert roles.endswith("hint: give all of image, prompt, answer\n")
    assert "must look like" in complaint(*command(qwen3_vl, data, out, "--modality-weight", "image"))
    assert "no config.json" in complaint(*command(tmp_path, data, out))
    large = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(out), "--group-size", "128"]
    assert invoke(*large, "--method", "rtn").exit_code == 0  # 128 and 256 columns


def test_fewer_records_than_usual_are_told(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    done = invoke(*command(qwen3_vl, data, tmp_path / "set", "--dry-run"))
    assert done.stdout == f"{tmp_path / 'set'}: would calibrate on 6 records\n"
    assert done.stderr == f"{data}: calibrating on all 6 records; 128 or more are usual\n"
    assert not (tmp_path / "set").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_told(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="no CUDA GPU"):
        calibrate(qwen3_vl, data, tmp_path, CalibrateSettings(device="cuda"))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"head": 5}, "--head: 5 is not one of 16, 8, 4"),
        ({"samples": 0}, "--samples: 0 must be at least 1"),
        ({"modality_weights": {"image": 1, "prompt": -1, "answer": 1}}, "prompt: -1.0 must be at least 0"),
        ({"modality_weights": {"image": 0, "prompt": 0, "answer": 0}}, "all 0"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        CalibrateSettings(**wrong)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of many blocks: there is time to kill its calibration between two of them."""
    return build_qwen3_vl(tmp_path_factory.mktemp("deep"), layers=12)


@pytest.fixture(scope="module")
def undisturbed(deep: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "set"
    subprocess.run([*EDGETUNE, *command(deep, data, output, "--head", "8")], check=True)
    return weights_of(output)


@pytest.mark.parametrize("blocks", [1, 6])
def test_a_killed_process_is_continued_to_the_same_bytes(
    deep: Path, data: Path, undisturbed: dict[str, bytes], tmp_path: Path, blocks: int
) -> None:
    output, work = tmp_path / "set", tmp_path / ".set.partial"
    words = [*EDGETUNE, *command(deep, data, output, "--head", "8")]
    process = start(words)
    wait_until(process, (work / "blocks" / f"{blocks:03d}.safetensors").is_file)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    subprocess.run(words, check=True)
    manifest = json.loads((output / MANIFEST).read_text())
    assert blocks <= manifest["result"]["resumed_blocks"] < 13
    assert weights_of(output) == undisturbed
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["set"]


def test_torn_and_damaged_remains_are_solved_again(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    settings = CalibrateSettings(method="rtn", group_sizes=(32,))
    whole, work = tmp_path / "whole", tmp_path / "work"
    for folder in (whole, work):
        folder.mkdir()
    told: list[tuple[int, int]] = []
    calibrate(qwen3_vl, data, whole, settings, seen=lambda done, total: told.append((done, total)))
    samples = len(data.read_text().splitlines())
    assert told == [(done, samples) for done in range(samples + 1)]

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        assert total == 4
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        calibrate(qwen3_vl, data, work, settings, progress=kill)
    journal = work / ".journal.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 4
    journal.write_text("\n".join(lines)[:-30])  # the last line was not written to its end
    damaged = work / "blocks" / "001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert calibrate(qwen3_vl, data, work, settings)["resumed_blocks"] == 1
    assert weights_of(work) == weights_of(whole)

    with pytest.raises(Killed):
        calibrate(qwen3_vl, data, work, settings, progress=kill)
    other = CalibrateSettings(method="rtn", group_sizes=(32,), symmetric=True)
    assert calibrate(qwen3_vl, data, work, other)["resumed_blocks"] == 0


def test_a_full_disk_is_one_line(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = run_on_small_disk(disk, [*EDGETUNE, *command(qwen3_vl, data, disk / "set")])
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-2] == f"error: {disk}: no space left on the disk"
