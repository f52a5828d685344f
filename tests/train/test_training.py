"""Training runs through the command line: they learn, repeat, survive a kill, and refuse what they cannot use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText

from builders import copy_checkpoint
from edgetune.cli import cli
from edgetune_runtime.manifest import sha256_tree
from processes import is_whole, start, wait_until
from train.conftest import RECORDS, write_records
from train.reference import conversation

QUICK = ["--epochs", "1", "--batch-size", "3", "--rank", "4", "--precision", "fp32"]


def train(checkpoint: Path, data: Path, output: Path, *options: str) -> Result:
    paths = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output)]
    return CliRunner().invoke(cli, ["train", *paths, *QUICK, *options])


def trained(checkpoint: Path, data: Path, output: Path, *options: str) -> dict[str, Any]:
    result = train(checkpoint, data, output, *options, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_few_samples_are_learned(
    request: pytest.FixtureRequest, family: str, data: Path, val: Path, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(family)
    output = tmp_path / "adapter"
    options = ["--epochs", "30", "--learning-rate", "0.01", "--val", str(val), "--trainer-arg", "eval_strategy=no"]
    result = trained(checkpoint, data, output, *options)["result"]
    assert result["steps"] == 60
    assert result["loss"]["last"] < 0.2 * result["loss"]["first"]
    base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    one = conversation(checkpoint, data.parent / "0.png", "What colour is the cup?", "red").inputs
    with torch.no_grad():
        before = base(**one).logits[0, -3].softmax(-1)
        after = PeftModel.from_pretrained(base, str(output)).eval()(**one).logits[0, -3].softmax(-1)
    answer = one["input_ids"][0, -2]  # "red" is followed by the end token
    assert after[answer] > 0.8 > before[answer]


def test_the_folder_tells_how_it_went(qwen3_vl: Path, data: Path, val: Path, tmp_path: Path) -> None:
    output = tmp_path / "adapter"
    document = trained(qwen3_vl, data, output, "--epochs", "2", "--val", str(val))
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    events = [name for name in names if "tfevents" in name]
    assert names == {"adapter_model.safetensors", "adapter_config.json", "logs/log.jsonl", "manifest.json", *events}
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["result"] == document["result"]
    assert set(manifest["inputs"]) == {"checkpoint", "data", "val"}
    assert manifest["seed"] == 0
    assert [row["epoch"] for row in manifest["result"]["validation"]] == [1, 2]
    for row in manifest["result"]["validation"]:
        assert {"loss", "acc50", "miou", "refusal_accuracy"} < set(row)
        assert 0 <= row["acc50"] <= row["miou"] * 2
    logged = [json.loads(line) for line in (output / "logs" / "log.jsonl").read_text().splitlines()]
    curve = EventAccumulator(str(output / "logs")).Reload().Scalars("train/loss")
    assert [point.step for point in curve] == [entry["step"] for entry in logged if "loss" in entry]
    assert [point.value for point in curve] == pytest.approx([entry["loss"] for entry in logged if "loss" in entry])

    again = train(qwen3_vl, data, output, "--epochs", "2", "--val", str(val))
    assert again.stdout.strip().endswith("unchanged, nothing to do")
    dry = train(qwen3_vl, data, tmp_path / "other", "--dry-run")
    assert dry.exit_code == 0
    assert not (tmp_path / "other").exists()


def test_the_seed_decides_everything(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        trained(qwen3_vl, data, tmp_path / name, "--seed", seed, "--dropout", "0.1")
        weights.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_equal_trainings_have_equal_hashes_in_every_process(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    """Python orders sets by a seed of the process; what an adapter is made of must not depend on it."""
    paths = ["--checkpoint", str(qwen3_vl), "--data", str(data)]
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "edgetune", "train", *paths, "--output", str(tmp_path / seed), *QUICK]
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
    names = json.loads((tmp_path / "1" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names)
    assert len(names) > 3
    assert sha256_tree(tmp_path / "1") == sha256_tree(tmp_path / "2")


def broken(checkpoint: Path, folder: Path) -> Path:
    """Copy a checkpoint with a weight that is not a number."""
    copy = copy_checkpoint(checkpoint, folder)
    weights = load_file(copy / "model.safetensors")
    next(tensor for name, tensor in weights.items() if "layers.0.self_attn.q_proj" in name)[0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_a_base_that_is_not_finite_trains_nothing(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    result = train(broken(qwen3_vl, tmp_path / "base"), data, tmp_path / "adapter", "--accumulate", "2")
    told = "step 1 of 1: the loss is nan, on the records data.jsonl:"
    refuses(result, told, "weights of the base that are not finite", output=tmp_path / "adapter", code=1)
    assert not list(tmp_path.rglob("adapter_model.safetensors"))


@pytest.mark.parametrize("layout", [["--batch-size", "3"], ["--pack", "200"]], ids=["padded", "packed"])
def test_a_training_that_diverges_stops_at_its_step(
    qwen3_vl: Path, data: Path, tmp_path: Path, layout: list[str]
) -> None:
    steep = ["--learning-rate", "1e38", "--epochs", "6", "--trainer-arg", "lr_scheduler_type=constant"]
    result = train(qwen3_vl, data, tmp_path / "adapter", *layout, *steep)
    told = ("step 2 of ", "on the records data.jsonl:", "--learning-rate")
    refuses(result, *told, output=tmp_path / "adapter", code=1)


def test_few_steps_are_remarked(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    said = [train(qwen3_vl, data, tmp_path / epochs, "--epochs", epochs).stderr for epochs in ("1", "15")]
    assert "only 2 optimizer steps" in said[0]
    assert "--epochs" in said[0]
    assert "optimizer steps" not in said[1]


def test_a_changed_picture_trains_again(qwen3_vl: Path, tmp_path: Path) -> None:
    data = write_records(tmp_path / "data")
    first = trained(qwen3_vl, data, tmp_path / "adapter")
    other = write_records(tmp_path / "other", seed=5)
    (data.parent / "0.png").write_bytes((other.parent / "0.png").read_bytes())
    second = trained(qwen3_vl, data, tmp_path / "adapter")
    assert not second["skipped"]
    assert first["inputs"]["data"] == second["inputs"]["data"]


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        (["--vision-lora"], ["model.visual.blocks.0.attn.qkv.lora_A", "language_model.layers.0.mlp.up_proj.lora_B"]),
        (["--gradient-checkpointing"], ["language_model.layers.0.mlp.up_proj.lora_A"]),
        (["--dora", "--rslora"], ["lora_magnitude_vector"]),
        (["--precision", "bf16"], ["language_model.layers.3.self_attn.q_proj.lora_A"]),
        (["--target", "q_proj", "--accumulate", "2"], ["layers.3.self_attn.q_proj.lora_B"]),
        (["--cache-mb", "0", "--limit", "2"], ["layers.3.self_attn.q_proj.lora_B"]),
    ],
)
def test_variants_move_their_weights(
    qwen3_vl: Path, data: Path, tmp_path: Path, options: list[str], marks: list[str]
) -> None:
    trained(qwen3_vl, data, tmp_path / "adapter", "--epochs", "3", "--learning-rate", "0.01", *options)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for mark in marks:
        found = [tensor for name, tensor in weights.items() if mark in name]
        assert found
        assert all(tensor.dtype == torch.float32 and tensor.abs().max() > 0 for tensor in found)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (("--dora" in options),) * 2


@pytest.mark.parametrize(
    "layout",
    [["--batch-size", "3", "--epochs", "12"], ["--pack", "200", "--accumulate", "2", "--epochs", "12"]],
    ids=["padded", "packed"],
)
def test_a_killed_run_continues_with_the_same_losses(
    qwen3_vl: Path, data: Path, tmp_path: Path, layout: list[str]
) -> None:
    # Kept features would be of groups of pictures that depend on where the run began, and so would their last bits.
    exact = ["--cache-mb", "0", "--trainer-arg", "logging_steps=2"]
    options = [*layout, "--checkpoint-steps", "5", "--dropout", "0.1", *exact]
    whole = trained(qwen3_vl, data, tmp_path / "whole", *options)
    output = tmp_path / "killed"
    paths = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(output)]
    process = start(
        [sys.executable, "-m", "edgetune", "train", *paths, *QUICK, *options],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    state = tmp_path / ".killed.partial" / "checkpoints" / "checkpoint-10" / "trainer_state.json"
    wait_until(process, lambda: is_whole(state))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()

    resumed = trained(qwen3_vl, data, output, *options)
    assert 10 <= resumed["result"]["resumed_from_step"] < whole["result"]["steps"]
    curves = []
    for name in ("whole", "killed"):
        lines = (tmp_path / name / "logs" / "log.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        curves.append([(entry["step"], entry["loss"], entry["grad_norm"]) for entry in logged if "loss" in entry])
    assert curves[0] == curves[1]
    assert len(curves[0]) >= 10
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


# With plain gradient descent a weight moves by what its gradient is, so an error of float32 in a gradient stays one.
# Adam divides each gradient by its own size: where a gradient is next to nothing, its last bits decide the whole step.
DESCENT = ["--trainer-arg", "optim=sgd", "--trainer-arg", "max_grad_norm=0", "--learning-rate", "0.5"]
GRADIENT_ERROR = 1e-5
"""Of a sum of a thousand float32 products in another order, as a share of the largest: thrice 1000^(1/2) of 2^-23."""


def assert_moved_alike(first: Path, second: Path) -> None:
    """Compare the adapters of two trainings, which have moved from the same start, for errors of float32 only."""
    tensors, others = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        largest = float(tensor.abs().max())
        if "lora_B" in name:
            assert largest > 1e-5, name  # it began at 0
        torch.testing.assert_close(others[name], tensor, atol=GRADIENT_ERROR * largest, rtol=0)


def test_packs_that_are_added_up_train_as_one_padded_batch(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    """All six records in each optimizer step: at once with padding, or in packs; the loss is a mean over tokens."""
    options = ["--epochs", "4", "--batch-size", "6", *DESCENT]
    padded = trained(qwen3_vl, data, tmp_path / "padded", *options)["result"]
    packed = trained(qwen3_vl, data, tmp_path / "packed", *options, "--pack", "200", "--accumulate", "10")["result"]
    assert padded["steps"] == packed["steps"] == 4
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)
    packing = packed["packing"]
    assert packing["packs_per_epoch"] > 1
    assert packing["records_per_pack"] == pytest.approx(6 / packing["packs_per_epoch"], abs=0.01)
    assert packed["token_utilization"] == pytest.approx(packing["utilization"], abs=1e-3)
    assert padded["token_utilization"] == pytest.approx(packing["utilization_padded"], abs=1e-3)
    assert_moved_alike(tmp_path / "padded", tmp_path / "packed")


def test_two_processes_train_as_one_that_accumulates(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    """Two ranks with 3 records each average the gradients that one process adds up over two steps of 3.

    Behind a link both build in the one folder beside what it leads to.
    """
    options = ["--epochs", "4", *DESCENT]
    trained(qwen3_vl, data, tmp_path / "one", *options, "--accumulate", "2")
    (tmp_path / "disk").mkdir()
    (tmp_path / "two").symlink_to(tmp_path / "disk" / "adapter")
    paths = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "edgetune", "train", *paths, *QUICK, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert_moved_alike(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "one", "two"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["adapter"]


def test_validation_images_must_not_be_trained_on(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    copied = write_records(tmp_path / "val", seed=0)
    result = train(qwen3_vl, data, tmp_path / "adapter", "--val", str(copied))
    assert result.exit_code == 2
    assert "data.jsonl:1: its image is also trained on" in result.stderr
    assert "6 of 6" in result.stderr
    reencoded = tmp_path / "reencoded"
    shutil.copytree(copied.parent, reencoded)
    for path in [path for path in reencoded.iterdir() if path.suffix == ".png"]:
        Image.open(path).save(path, "BMP")
    bytes_differ = train(qwen3_vl, data, tmp_path / "adapter", "--val", str(reencoded / copied.name))
    assert bytes_differ.stderr == result.stderr
    assert train(qwen3_vl, data, tmp_path / "adapter", "--val", str(copied), "--allow-overlap").exit_code == 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"image": "missing.png", "text": "a", "bbox": [1, 2, 3, 4]}', "missing.png"),
        ('{"image": "0.png", "text": "a"', "not valid JSON"),
        ('{"image": "0.png", "text": "a", "bbox": [1, 2, 3000, 40]}', "leaves the 160x120 image"),
        ('{"image": "0.png", "text": "a", "bbox": [30, 2, 10, 40]}', "x1 >= x2"),
    ],
)
def test_a_bad_record_is_one_line_with_its_place(qwen3_vl: Path, tmp_path: Path, line: str, complaint: str) -> None:
    data = write_records(tmp_path / "data", records=RECORDS[:1])
    data.write_text(data.read_text() + line + "\n")
    refuses(train(qwen3_vl, data, tmp_path / "adapter"), f"{data}:2: ", complaint, output=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("preprocessor_config.json", None, "preprocessor_config.json"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("config.json", '{"model_type": "qwen9_vl"}', "qwen9_vl"),
        ("config.json", '{"model_type": "qwen"}', "boxes only"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", None, "config.json"),
    ],
)
def test_a_bad_checkpoint_is_one_line(
    qwen3_vl: Path, data: Path, tmp_path: Path, file: str, content: str | None, complaint: str
) -> None:
    checkpoint = copy_checkpoint(qwen3_vl, tmp_path / "checkpoint")
    (checkpoint / file).unlink()
    if content is not None:
        (checkpoint / file).write_text(content)
    refuses(train(checkpoint, data, tmp_path / "adapter"), complaint, output=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--target", "q_porj"], "'q_porj' matches no linear layer"),
        (["--trainer-arg", "max_grad_nrom=1"], "max_grad_norm"),
        (["--trainer-arg", "num_train_epochs=1"], "use --epochs"),
        (["--trainer-arg", "save_strategy=no"], "edgetune relies on it"),
        (["--trainer-arg", "dataloader_pin_memory=true"], "edgetune relies on it"),
        (["--trainer-arg", "optim=sdg"], "sdg"),
        (["--trainer-arg", "warmup_steps"], "KEY=VALUE"),
    ],
)
def test_a_bad_option_is_one_line(
    qwen3_vl: Path, data: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    refuses(train(qwen3_vl, data, tmp_path / "adapter", *options), complaint, output=tmp_path / "adapter")


def test_trainer_arguments_reach_the_trainer(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    options = [
        "--trainer-arg",
        "max_steps=3",
        "--trainer-arg",
        "lr_scheduler_type=constant",
        "--trainer-arg",
        "logging_steps=1",
    ]
    document = trained(qwen3_vl, data, tmp_path / "adapter", *options, "--learning-rate", "0.005")
    assert document["result"]["steps"] == 3
    logged = [json.loads(line) for line in (tmp_path / "adapter" / "logs" / "log.jsonl").read_text().splitlines()]
    assert [entry["learning_rate"] for entry in logged if "loss" in entry] == [0.005] * 3


def refuses(result: Result, *complaints: str, output: Path, code: int = 2) -> None:
    """Check for the exit code, one error line (and a hint at most) that names the complaints, and no output."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert [line.partition(":")[0] for line in lines[1:]] in ([], ["hint"])
    for complaint in complaints:
        assert complaint in result.stderr
    assert not output.exists()
