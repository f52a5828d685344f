"""GRPO runs through the command line: they raise their rewards, continue, start from adapters, refuse what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import prepare
from edgetune_runtime.records import read_records
from edgetune_train.batch import Collator
from edgetune_train.prompts import SamplePrompts
from edgetune_train.vision import PixelInputs
from processes import is_whole, start, wait_until
from train.conftest import write_records
from train.reference import conversation

QUICK = [
    "--batch-size",
    "2",
    "--generations",
    "4",
    "--max-tokens",
    "6",
    "--precision",
    "fp32",
    "--learning-rate",
    "0.01",
]


def grpo(checkpoint: Path, data: Path, output: Path, *options: str) -> Result:
    paths = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output)]
    return CliRunner().invoke(cli, ["grpo", *paths, *QUICK, *options])


def trained(checkpoint: Path, data: Path, output: Path, *options: str) -> dict[str, Any]:
    result = grpo(checkpoint, data, output, *options, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_prompts_are_those_of_inference(qwen3_vl: Path, data: Path) -> None:
    base = HubCheckpoint.open(qwen3_vl)
    records = read_records(data)
    samples = prepare(records, base.family, base.spec, base.tokenizer)
    prompts = SamplePrompts(base, samples, Collator.of(base, PixelInputs(base.spec)))
    rows = prompts.dataset([record.prompt(base.family) for record in records])
    turns = [[{"role": "user", "content": [{"type": "image", "image": rows[i]["image"]}]}] for i in (0, 1)]
    found = prompts.apply_chat_template(turns, tokenize=True)
    requests = [
        "Locate the left clock and output its bbox coordinates in JSON format.",
        "Locate the owl above the door and output its bbox coordinates in JSON format.",
    ]
    for index, text in enumerate(requests):
        reference = conversation(qwen3_vl, data.parent / f"{index}.png", text, "[]").prompt()
        assert found["input_ids"][index] == reference["input_ids"][0].tolist()
        kinds = reference["mm_token_type_ids"][0].tolist()
        assert found["mm_token_type_ids"][index] == kinds
        assert torch.equal(found["image_grid_thw"][index], reference["image_grid_thw"][0])
    assert rows[3]["prompt"][0]["content"] == "What colour is the cup?"


def test_an_adapter_is_trained_and_logged(qwen3_vl: Path, data: Path, val: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    document = trained(qwen3_vl, data, output, "--val", str(val), "--reward", "refusal=0.5", "--rank", "4")
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    events = [name for name in names if "tfevents" in name]
    assert names == {"adapter_model.safetensors", "adapter_config.json", "logs/log.jsonl", "manifest.json", *events}
    result = document["result"]
    assert (result["steps"], result["records"], len(result["validation"])) == (3, 6, 1)
    assert set(result["rewards"]) == {"format", "iou", "refusal", "answer"}
    assert document["settings"]["rewards"] == {"format": 1, "iou": 1, "refusal": 0.5, "answer": 1}
    logged = [json.loads(line) for line in (output / "logs" / "log.jsonl").read_text().splitlines()]
    for entry in (entry for entry in logged if "reward" in entry):
        means = {name: entry[f"rewards/{name}/mean"] for name in result["rewards"]}
        assert all(mean is None or 0 <= mean <= 1 for mean in means.values())
    weights = load_file(output / "adapter_model.safetensors")
    assert all(".lora_" in name and tensor.dtype == torch.float32 for name, tensor in weights.items())
    assert grpo(qwen3_vl, data, output, "--val", str(val), "--reward", "refusal=0.5", "--rank", "4").stdout.endswith(
        "unchanged, nothing to do\n"
    )


def launched(processes: int, *arguments: str) -> dict[str, Any]:
    """Run GRPO in several processes that share the records, as `torchrun` starts them; return the manifest's result."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "edgetune"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "grpo", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # processes that wait for each other wait for ever
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((Path(arguments[-1]) / "manifest.json").read_text())["result"]
    return result


def test_it_goes_on_from_an_adapter_to_what_is_rewarded(qwen3_vl: Path, tmp_path: Path) -> None:
    """An adapter that says red or blue, as its data did, learns by the rewards alone to say red, alone or in two."""
    first, one, two, merged = (tmp_path / name for name in ("sft", "one", "two", "merged"))
    red = {"image": "0.png", "question": "What colour is the cup?", "answer": "red"}
    both = write_records(tmp_path / "both", records=[red, {**red, "answer": "blue"}])
    only = write_records(tmp_path / "only", records=[red, red])
    run = CliRunner().invoke
    base = ["--checkpoint", str(qwen3_vl)]
    options = ["--epochs", "40", "--batch-size", "2", "--learning-rate", "0.005", "--rank", "4", "--precision", "fp32"]
    tuned = run(cli, ["train", *base, "--data", str(both), "--output", str(first), *options])
    assert tuned.exit_code == 0, tuned.output
    steps = [*QUICK, "--epochs", "12", "--generations", "16", "--learning-rate", "0.001", "--max-tokens", "4"]
    words = [*base, "--data", str(only), "--adapter", str(first), *steps]
    results = [
        trained(qwen3_vl, only, one, *words[4:], "--batch-size", "2")["result"],
        launched(2, *words, "--batch-size", "1", "--output", str(two)),
    ]
    for processes, result in enumerate(results, 1):
        assert (result["parallel"]["processes"], result["steps"]) == (processes, 12)
        earned = result["rewards"]["answer"]
        assert earned["last"] >= 0.9 > earned["first"] > 0
    for adapter in (one, two):
        output = merged / adapter.name
        assert run(cli, ["merge", *base, "--adapter", str(adapter), "--output", str(output)]).exit_code == 0


def test_a_killed_run_continues_to_the_same_end(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    options = ["--epochs", "2", "--checkpoint-steps", "2", "--limit", "4", "--rank", "2"]  # 4 steps
    whole = trained(qwen3_vl, data, tmp_path / "whole", *options)
    output = tmp_path / "killed"
    paths = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(output)]
    process = start(
        [sys.executable, "-m", "edgetune", "grpo", *paths, *QUICK, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    state = tmp_path / ".killed.partial" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    wait_until(process, lambda: is_whole(state))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    continued = trained(qwen3_vl, data, output, *options)
    assert continued["result"]["resumed_from_step"] >= 2
    assert continued["result"]["steps"] == whole["result"]["steps"] == 4
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--reward", "iuo=2"], "the rewards are format, iou, refusal, answer"),
        (["--reward", "iou"], "must look like NAME=WEIGHT"),
        (["--reward", "iou=-1"], "-1.0 must be at least 0"),
        (
            [part for name in ("format", "iou", "refusal", "answer") for part in ("--reward", f"{name}=0")],
            "all weights",
        ),
        (["--trainer-arg", "num_generations=4"], "use --generations"),
        (["--trainer-arg", "loss_typ=grpo"], "did you mean loss_type"),
        (["--trainer-arg", "steps_per_generation=2"], "edgetune relies on it"),
        (["--adapter", "missing"], "missing"),
    ],
)
def test_a_bad_option_is_one_line(
    qwen3_vl: Path, data: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    result = grpo(qwen3_vl, data, tmp_path / "adapter", *options)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.count("error: ") == 1
    assert not (tmp_path / "adapter").exists()
