"""Checkpoints are refused for the same reasons wherever they are given, in a line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from builders import copy_checkpoint
from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint, tensor_shapes
from edgetune_runtime.errors import InputError
from train.conftest import write_records


def edited(source: Path, folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a checkpoint and change one of its JSON files in place."""
    copy_checkpoint(source, folder)
    path = folder / name
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return folder


def test_a_checkpoint_is_read_without_its_weights(qwen3_vl: Path) -> None:
    checkpoint = HubCheckpoint.open(qwen3_vl, exported=True)
    assert (checkpoint.family.name, checkpoint.dtype) == ("qwen3_vl", "float32")
    assert checkpoint.spec.token_pixels == 32
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(qwen3_vl / "model.safetensors").items()}
    assert tensor_shapes(qwen3_vl) == stored
    checkpoint.check_template()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c.update(model_type=None), "'model_type' must be a text, got None"),
        ("config.json", lambda c: c.update(model_type=["qwen3_vl"]), "'model_type' must be a text, got"),
        (
            "config.json",
            lambda c: c.update(text_config=None),
            "'text_config' must describe a part of the model, got None",
        ),
        ("config.json", lambda c: c.update(text_config={}), "'text_config' must describe a part of the model, got {}"),
        (
            "config.json",
            lambda c: c.update(text_config="x"),
            "'text_config' must describe a part of the model, got 'x'",
        ),
        ("config.json", lambda c: c["text_config"].update(hidden_size=4096), "config.json says hidden_size 4096"),
        ("config.json", lambda c: c["text_config"].pop("hidden_size"), "config.json says hidden_size None"),
        (
            "config.json",
            lambda c: c["text_config"].update(num_hidden_layers=10**6),
            "says num_hidden_layers 1000000, the",
        ),
        (
            "config.json",
            lambda c: c["vision_config"].update(depth=10**6),
            "config.json says depth 1000000, the weights",
        ),
        (
            "preprocessor_config.json",
            lambda c: c.update(patch_size=14),
            "the preprocessor's patch_size is 14, config.json's vision tower has patch_size 16",
        ),
        ("preprocessor_config.json", lambda c: c.update(merge_size=4), "the preprocessor's merge_size is 4"),
    ],
)
def test_files_that_contradict_each_other_are_told(
    name: str, change: Callable[[dict[str, Any]], object], message: str, qwen3_vl: Path, tmp_path: Path
) -> None:
    folder = edited(qwen3_vl, tmp_path / "edited", name, change)
    with pytest.raises(InputError) as caught:
        HubCheckpoint.open(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("num_attention_heads", 0), ("vocab_size", "x")])
def test_a_config_that_transformers_stumbles_over_is_one_line(
    key: str, value: object, qwen3_vl: Path, tmp_path: Path
) -> None:
    folder = edited(qwen3_vl, tmp_path / "edited", "config.json", lambda c: c["text_config"].update({key: value}))
    with pytest.raises(InputError, match="the model cannot be loaded: "):
        HubCheckpoint.open(folder).load_model(torch.float32)


def test_a_name_of_the_hub_comes_with_the_command_that_downloads_it() -> None:
    with pytest.raises(InputError, match="no such checkpoint folder") as caught:
        HubCheckpoint.open(Path("Qwen/Qwen3-VL-2B-Instruct"))
    assert str(caught.value.hint).startswith(
        "if it is a name on the hub: hf download Qwen/Qwen3-VL-2B-Instruct --local-dir Qwen3-VL-2B-Instruct"
    )


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../outside.safetensors"}, "names '../outside.safetensors', which is not a file of this folder"),
        ({"x": "/etc/passwd"}, "names '/etc/passwd', which is not a file of this folder"),
        ({"x": "gone.safetensors"}, "names gone.safetensors, which is not in the folder"),
        (["model.safetensors"], "'weight_map' must name a file for each weight"),
        ({"x": 5}, "'weight_map' must name a file for each weight"),
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(
    weight_map: Any, message: str, qwen3_vl: Path, tmp_path: Path
) -> None:
    folder = copy_checkpoint(qwen3_vl, tmp_path / "indexed")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError) as caught:
        HubCheckpoint.open(folder)
    assert message in str(caught.value)


def test_stale_weights_beside_shards_are_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(qwen3_vl, tmp_path / "sharded")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"has model\.safetensors beside model\.safetensors\.index\.json"):
        HubCheckpoint.open(folder)
    (folder / "model.safetensors").unlink()
    assert set(tensor_shapes(HubCheckpoint.open(folder).folder)) == set(tensors)


def test_a_pickle_is_not_loaded(qwen3_vl: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(qwen3_vl, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no model\.safetensors") as caught:
        HubCheckpoint.open(folder)
    assert "convert pytorch_model.bin to safetensors" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ raise_exception('only two turns') }}", "only two turns"),
        ("{{ messages[0].__class__.__mro__ }}", "SecurityError"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "the chat template cannot be rendered: "),
        ('{% set x = "a" * 4000000000 %}{{ x | length }}', "the chat template cannot be rendered: "),
        ("hello", "the chat template renders"),
        (b"\xff\xfe", "transformers cannot load the tokenizer"),
    ],
)
def test_a_chat_template_that_is_missing_or_wrong_is_one_line(
    template: str | bytes | None, message: str, qwen3_vl: Path, tmp_path: Path
) -> None:
    folder = copy_checkpoint(qwen3_vl, tmp_path / "templated")
    path = folder / "chat_template.jinja"
    if template is None:
        path.unlink()
    else:
        path.write_bytes(template.encode() if isinstance(template, str) else template)
    with pytest.raises(InputError) as caught:
        HubCheckpoint.open(folder).check_template()
    assert message in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("verb", ["train", "grpo", "calibrate", "export"])
def test_a_dry_run_refuses_a_broken_chat_template(verb: str, qwen3_vl: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(qwen3_vl, tmp_path / "templated")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only two turns') }}")
    data = [] if verb == "export" else ["--data", str(write_records(tmp_path / "data"))]
    paths = ["--checkpoint", str(folder), *data, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [verb, *paths, "--dry-run"])
    error, hint = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "")
    assert error == f"error: {folder}: the chat template cannot be rendered: TemplateError: only two turns"
    assert hint == "hint: use the chat template of the family's published checkpoints"
    assert CliRunner().invoke(cli, [verb, *paths[:1], str(qwen3_vl), *paths[2:], "--dry-run"]).exit_code == 0


def test_a_template_in_the_older_file_is_read(qwen3_vl: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(qwen3_vl, tmp_path / "older")
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    HubCheckpoint.open(folder).check_template()
