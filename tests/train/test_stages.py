"""Trainings in sequence, early stops and the best adapter: decided by the data and the seed, also when interrupted."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from edgetune.cli import cli
from processes import is_whole, start, wait_until
from train.conftest import RECORDS, write_records
from train.test_training import QUICK, refuses, trained


def staged(checkpoint: Path, output: Path, *options: str) -> Result:
    paths = ["--checkpoint", str(checkpoint), "--output", str(output)]
    return CliRunner().invoke(cli, ["train", *paths, *QUICK, *options])


@pytest.fixture
def curriculum(data: Path, val: Path, tmp_path: Path) -> str:
    """Two stage files: questions, then boxes with validation; one in YAML, one in TOML."""
    questions = write_records(tmp_path / "questions", records=RECORDS[3:5])
    (tmp_path / "general.yaml").write_text(f"data: {questions}\nepochs: 6\nlearning-rate: 1e-2\n")
    (tmp_path / "domain.toml").write_text(f'data = "{data}"\nval = "{val}"\nval-limit = 2\nepochs = 4\npack = 300\n')
    return f"{tmp_path / 'general.yaml'},{tmp_path / 'domain.toml'}"


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_each_stage_goes_on_from_the_one_before(qwen3_vl: Path, curriculum: str, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    options = ["--stage", curriculum, "--trainer-arg", "lr_scheduler_type=constant"]
    result = staged(qwen3_vl, output, *options, "--json")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((output / "manifest.json").read_text())
    general, domain = manifest["result"]["stages"]
    assert [general["name"], domain["name"]] == ["general", "domain"]
    assert set(manifest["inputs"]) == {"checkpoint", "general data", "domain data", "domain val"}
    settings = manifest["settings"]["stages"]
    assert (settings["general"]["learning_rate"], settings["domain"]["learning_rate"]) == (0.01, 0.0002)
    assert (settings["general"]["pack"], settings["domain"]["pack"]) == (0, 300)
    assert (general["records"], general["validation"], len(domain["validation"])) == (2, [], 4)
    assert manifest["result"]["base_weights_sha256"] == domain["base_weights_sha256"]

    # The second stage's first loss is that of the first stage's adapter on its records, not that of the base.
    alone = trained(qwen3_vl, data, tmp_path / "alone", "--epochs", "4", "--pack", "300")["result"]
    assert domain["loss"]["first"] < alone["loss"]["first"] - 0.5
    start, end = adapter(output / "general"), adapter(output / "domain")
    drift = max(float((end[name] - start[name]).abs().max()) for name in start)
    assert 0 < drift < 0.02  # steps of 2e-4 from there: a new adapter would be a different draw
    assert all(torch.equal(tensor, adapter(output)[name]) for name, tensor in end.items())

    again = staged(qwen3_vl, output, *options)
    assert again.stdout.strip().endswith("unchanged, nothing to do")


def test_a_killed_curriculum_goes_on_at_its_stage(qwen3_vl: Path, curriculum: str, tmp_path: Path) -> None:
    options = ["--stage", curriculum, "--checkpoint-steps", "4", "--dropout", "0.1", "--cache-mb", "0"]
    whole = staged(qwen3_vl, tmp_path / "whole", *options)
    assert whole.exit_code == 0, whole.stderr
    paths = ["--checkpoint", str(qwen3_vl), "--output", str(tmp_path / "killed")]
    process = start(
        [sys.executable, "-m", "edgetune", "train", *paths, *QUICK, *options],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    partial = tmp_path / ".killed.partial"
    state = partial / "domain" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    wait_until(process, lambda: is_whole(state))  # it is what a resume point gets last
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    first_stage = (partial / "general" / "adapter_model.safetensors").stat().st_mtime_ns

    resumed = staged(qwen3_vl, tmp_path / "killed", *options, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    _, domain = json.loads(resumed.stdout)["result"]["stages"]
    assert domain["resumed_from_step"] >= 4
    kept = tmp_path / "killed" / "general" / "adapter_model.safetensors"
    assert kept.stat().st_mtime_ns == first_stage
    for name, tensor in adapter(tmp_path / "whole").items():
        assert torch.equal(adapter(tmp_path / "killed")[name], tensor)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.yaml", "dat: x\n", "unknown key 'dat'"),
        ("a.yaml", "rank: 4\n", "all stages train the same adapter"),
        ("a.toml", 'output = "x"\n', "give it on the command line"),
        ("a.yaml", "epochs: [1]\n", "key 'epochs': takes a number, not [1]"),
        ("a.yaml", "epochs: many\n", "key 'epochs': 'many' is not a number"),
        ("a.yaml", "- data\n", "must hold options by name"),
        ("a.yaml", "data: [\n", "not valid YAML"),
        ("a.yaml", "epochs: 1\n", "needs 'data'"),
        ("b.yaml", "", "no such file"),
    ],
)
def test_a_bad_stage_file_is_one_line(qwen3_vl: Path, tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / "a.yaml"
    if content:
        path = tmp_path / name
        path.write_text(content)
    output = tmp_path / "adapter"
    refuses(staged(qwen3_vl, output, "--stage", str(path)), str(path), complaint, output=output)


def test_stages_must_not_validate_on_what_an_earlier_one_trained(
    qwen3_vl: Path, data: Path, val: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(f"data: {val}\n")
    (tmp_path / "b.yaml").write_text(f"data: {data}\nval: {val}\n")
    stages = f"{tmp_path / 'a.yaml'},{tmp_path / 'b.yaml'}"
    output = tmp_path / "adapter"
    refuses(staged(qwen3_vl, output, "--stage", stages), "its image is also trained on", output=output)
    refuses(staged(qwen3_vl, output), "--data: no training records", output=output)


def validations(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "logs" / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "eval_miou" in entry]


def test_the_best_adapter_is_kept_and_the_run_stops(qwen3_vl: Path, data: Path, val: Path, tmp_path: Path) -> None:
    """Random weights do not learn to box unseen pictures, so the first validation stays the best."""
    options = ["--val", str(val), "--val-limit", "2", "--epochs", "8", "--learning-rate", "0.01"]
    result = trained(qwen3_vl, data, tmp_path / "best", *options, "--keep", "best", "--early-stop", "2")["result"]
    seen = validations(tmp_path / "best")
    scores = [entry["eval_miou"] for entry in seen]
    best = scores.index(max(scores))
    assert len(seen) == best + 1 + 2 < 8
    assert result["kept"] == {"step": seen[best]["step"], "epoch": best + 1, "miou": scores[best]}
    names = {path.name for path in (tmp_path / "best").iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "logs", "manifest.json"}

    # The same run with a stop at that step ends with the same weights.
    stop = ["--trainer-arg", f"max_steps={seen[best]['step']}", "--trainer-arg", "lr_scheduler_type=constant"]
    constant = ["--trainer-arg", "lr_scheduler_type=constant"]
    trained(qwen3_vl, data, tmp_path / "a", *options, *constant, "--keep", "best", "--early-stop", "2")
    trained(qwen3_vl, data, tmp_path / "b", *options, *stop)
    assert validations(tmp_path / "a")[best]["step"] == seen[best]["step"]
    for name, tensor in adapter(tmp_path / "b").items():
        assert torch.equal(adapter(tmp_path / "a")[name], tensor)


def test_early_stop_does_not_outlive_a_resume(qwen3_vl: Path, data: Path, val: Path, tmp_path: Path) -> None:
    """A run that was killed between its early stop and its end does not train on."""
    from edgetune_train.best import BestAdapter

    history = [{"step": 2.0, "eval_miou": 0.5}, {"step": 4.0, "eval_miou": 0.5}, {"step": 6.0, "eval_miou": 0.4}]
    assert BestAdapter(None, 2).is_over(history)
    assert not BestAdapter(None, 3).is_over(history)
    assert not BestAdapter(None, 2).is_over([*history[:2], {"step": 6.0, "eval_miou": 0.6}])
    assert not BestAdapter(None, None).is_over(history)
