"""What is held and trained: 4-bit bases, parts of the vision tower, the rates of LoRA+; merged and scored after."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_train.adapt import adapted_model
from edgetune_train.arguments import training_arguments
from edgetune_train.settings import TrainSettings
from train.test_training import refuses, train, trained

LEARN = ["--epochs", "10", "--learning-rate", "0.01"]


def merge(checkpoint: Path, adapter: Path, output: Path) -> dict[str, torch.Tensor]:
    """Merge as a user does; return the merged checkpoint's weights."""
    paths = ["--checkpoint", str(checkpoint), "--adapter", str(adapter), "--output", str(output)]
    result = CliRunner().invoke(cli, ["merge", *paths])
    assert result.exit_code == 0, result.stderr
    return load_file(output / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> set[str]:
    """Return the names with this part whose tensors changed."""
    assert before.keys() == after.keys()
    return {name for name in before if part in name and not torch.equal(before[name], after[name])}


def test_a_4_bit_base_trains_an_adapter_that_merges_into_the_whole_one(
    qwen3_vl: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    nf4 = trained(qwen3_vl, data, tmp_path / "nf4", *LEARN, "--quantize", "nf4", "--pack", "300")["result"]
    fp32 = trained(qwen3_vl, data, tmp_path / "fp32", *LEARN, "--pack", "300")["result"]
    assert nf4["loss"]["last"] < 0.7 * nf4["loss"]["first"]
    assert nf4["loss"]["first"] != fp32["loss"]["first"]  # it is another base that computes
    assert nf4["base_weights_sha256"] == fp32["base_weights_sha256"]
    before = load_file(qwen3_vl / "model.safetensors")
    after = merge(qwen3_vl, tmp_path / "nf4", tmp_path / "merged")
    assert moved(before, after, "language_model") == {
        name for name in before if name.endswith("_proj.weight") and "language" in name
    }
    assert not moved(before, after, "visual")


def test_only_the_language_blocks_are_held_in_4_bits(qwen2_5_vl: Path, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    settings = TrainSettings(quantize="nf4", precision="fp32")
    base = HubCheckpoint.open(qwen2_5_vl)
    model = adapted_model(base, settings, training_arguments(settings, tmp_path, validate=False), start=None).model
    held = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert len(held) == base.config["text_config"]["num_hidden_layers"] * 7
    assert all("language_model.layers" in name for name in held)
    one = model.get_submodule(next(iter(held))).weight
    assert one.dtype == torch.uint8
    assert (one.quant_state.quant_type, one.quant_state.nested) == ("nf4", True)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_the_last_vision_blocks_and_the_merger_train_whole(
    request: pytest.FixtureRequest, family: str, data: Path, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(family)
    adapter = tmp_path / "adapter"
    options = ["--unfreeze", "vision.last:1,merger", "--gradient-checkpointing", "--pack", "300", "--precision", "bf16"]
    trained(checkpoint, data, adapter, "--epochs", "2", "--learning-rate", "0.01", *options)
    before = load_file(checkpoint / "model.safetensors")
    after = merge(checkpoint, adapter, tmp_path / "merged")
    changed = {name.partition("visual.")[2] for name in moved(before, after, "visual")}
    parts = ("blocks.1.", "merger.", "deepstack_merger_list.")
    whole = {name.partition("visual.")[2] for name in before if "visual." in name}
    assert changed == {name for name in whole if name.startswith(parts)}
    saved = load_file(adapter / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())

    paths = [str(checkpoint), "--adapter", str(adapter), "--data", str(data)]
    scored = CliRunner().invoke(cli, ["eval", *paths, "--limit", "1", "--max-new-tokens", "8"])
    assert scored.exit_code == 0, scored.stderr


def test_loraplus_moves_b_faster_than_a(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    norms = {}
    for ratio in (None, "16"):
        options = ["--epochs", "2", "--learning-rate", "1e-4", *(["--loraplus-ratio", ratio] if ratio else [])]
        trained(qwen3_vl, data, tmp_path / str(ratio), *options)
        weights = load_file(tmp_path / str(ratio) / "adapter_model.safetensors")
        norms[ratio] = {
            side: torch.cat([w.flatten() for n, w in weights.items() if side in n]) for side in ("lora_A", "lora_B")
        }
    # B starts at zero and Adam moves every weight by about the learning rate.
    assert float(norms["16"]["lora_B"].norm() / norms[None]["lora_B"].norm()) == pytest.approx(16, rel=0.2)
    torch.testing.assert_close(norms["16"]["lora_A"], norms[None]["lora_A"], atol=1e-3, rtol=0)


def test_an_optimizer_in_8_bits_trains(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = trained(qwen3_vl, data, tmp_path / "adapter", *LEARN, "--trainer-arg", "optim=adamw_8bit")["result"]
    assert result["loss"]["last"] < 0.8 * result["loss"]["first"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--unfreeze", "vision.last:9"], "--unfreeze vision.last:9: the vision tower has 2 blocks"),
        (["--unfreeze", "vision"], "--unfreeze vision: no such part"),
        (["--unfreeze", "merger", "--vision-lora"], "would be adapted by LoRA and trained whole"),
        (["--unfreeze", "merger", "--loraplus-ratio", "16"], "--loraplus-ratio"),
        (["--pack", "20"], "more than --pack 20"),
        (["--keep", "best"], "--keep best"),
        (["--early-stop", "2"], "--early-stop"),
    ],
)
def test_what_cannot_be_is_one_line(
    qwen3_vl: Path, data: Path, tmp_path: Path, options: list[str], complaint: str
) -> None:
    refuses(train(qwen3_vl, data, tmp_path / "adapter", *options), complaint, output=tmp_path / "adapter")
