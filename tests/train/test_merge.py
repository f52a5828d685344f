"""Merged checkpoints against peft's own merge, under the names and dtypes of the base; and every refusal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from builders import REPOSITORY, TINY_MODEL, build_qwen3_vl, copy_checkpoint
from edgetune.cli import cli
from edgetune_core.adapter import Adapter
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_runtime.errors import InputError, ParityError
from edgetune_train.adapted import AdaptedBase
from edgetune_train.merge import merge as build
from edgetune_train.proof import compare, proof_inputs
from warm import FRESH

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "modules_to_save": {"modules_to_save": ["norm"]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 1}},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "o_proj"]},
    "pissa": {"init_lora_weights": "pissa"},
    "bias": {"lora_bias": True, "target_modules": ["qkv"]},
    "tokens": {"trainable_token_indices": [3, 5, 77]},
    "merger": {"modules_to_save": ["merger"]},
    "patches": {"target_modules": ["patch_embed.proj", "o_proj"]},
}


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)


def make_adapter(base: Path, folder: Path, *, strength: float = 0.1, seed: int = 0, **config: Any) -> Path:
    """Write an adapter through peft, with every weight that starts at zero drawn at random."""
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj", "qkv"], **config}
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **chosen))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.search(r"lora_B|lora_embedding_A|modules_to_save|tokens_delta", name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
    model.save_pretrained(str(folder))
    return folder


def merge(base: Path, adapter: Path, output: Path, *options: str) -> Result:
    paths = ["--checkpoint", str(base), "--adapter", str(adapter), "--output", str(output)]
    return CliRunner().invoke(cli, ["merge", *paths, *options])


def merged(base: Path, adapter: Path, output: Path, *options: str) -> dict[str, Any]:
    result = merge(base, adapter, output, *options, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def refuses(result: Result, code: int, complaint: str, output: Path) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert [line.partition(":")[0] for line in lines[1:]] in ([], ["hint"])
    assert complaint in result.stderr
    assert not output.exists()


def header(path: Path) -> dict[str, tuple[str, list[int]]]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in names}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_pefts_own_merge(
    request: pytest.FixtureRequest, family: str, kind: str, tmp_path: Path
) -> None:
    base = request.getfixturevalue(family)
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    result = merged(base, adapter, tmp_path / "merged")["result"]

    reference = load(base)
    if kind in ("head", "embeddings"):  # untied first, or peft would merge one change into both
        reference.lm_head.weight = torch.nn.Parameter(reference.lm_head.weight.detach().clone())
    expected = PeftModel.from_pretrained(reference, str(adapter)).merge_and_unload(safe_merge=True).state_dict()
    actual = load(tmp_path / "merged").state_dict()
    assert actual.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []
    before = load(base).state_dict()
    changed = [name for name, tensor in actual.items() if not torch.equal(tensor, before[name])]
    own_head = family == "qwen3_vl" and kind == "embeddings"  # the head, tied so far, becomes a tensor of its own
    assert result["changed_tensors"] == len({actual[name].data_ptr() for name in changed}) + own_head > 0
    assert result["proof"]["merge_error"] < 1e-4
    assert result["proof"]["written_error"] < 1e-4
    assert result["proof"]["same_token"] == 1


def test_large_layers_are_merged_in_parts(qwen2_5_vl: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen2_5_vl, tmp_path / "adapter", target_modules=["lm_head", "embed_tokens", "q_proj"])
    base = HubCheckpoint.open(qwen2_5_vl)
    adapted = AdaptedBase(base, Adapter.of(base, adapter), large=100_000)
    expected = PeftModel.from_pretrained(load(qwen2_5_vl), str(adapter)).merge_and_unload(safe_merge=True).state_dict()
    assert adapted.changed >= {"lm_head.weight", "model.language_model.embed_tokens.weight"}
    for name in adapted.changed:  # a product of fewer rows may differ in the last bit
        torch.testing.assert_close(adapted.merged(name), expected[name], atol=2e-7, rtol=1e-6)


def test_head_and_table_that_an_adapter_keeps_tied_stay_tied(qwen3_vl: Path, tmp_path: Path) -> None:
    targets = ["embed_tokens", "o_proj"]
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter", target_modules=targets, ensure_weight_tying=True)
    result = merged(qwen3_vl, adapter, tmp_path / "merged")["result"]
    assert not result["untied_head"]
    name = "model.language_model.embed_tokens"
    lora = load_file(adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_embedding_{part}"] for part in "AB")
    before, after = (load_file(folder / "model.safetensors") for folder in (qwen3_vl, tmp_path / "merged"))
    assert before.keys() == after.keys()
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 8 / 4 * (b @ a).T)


def test_only_what_the_adapter_changes_differs_from_the_base(qwen2_5_vl: Path, tmp_path: Path) -> None:
    (base := copy_checkpoint(qwen2_5_vl, tmp_path / "base")).joinpath("notes").mkdir()
    (base / "notes" / "README.txt").write_text("kept")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["v_proj"])
    merged(base, adapter, tmp_path / "merged")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.self_attn.v_proj.weight" for i in range(3)}
    files = [path.relative_to(base) for path in base.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert Path("notes/README.txt") in files
    assert all((tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes() for name in files)


@pytest.mark.parametrize(
    ("family", "prefixes"),
    [
        # As published: Qwen2.5-VL's files have transformers 4 names, Qwen3-VL's the present ones.
        ("qwen2_5_vl", {"visual.blocks.", "visual.merger.", "model.layers.", "model.embed_tokens.", "lm_head."}),
        ("qwen3_vl", {"model.visual.blocks.", "model.visual.deepstack_merger_list.", "model.language_model.layers."}),
    ],
)
def test_tensor_names_are_the_published_ones(
    request: pytest.FixtureRequest, family: str, prefixes: set[str], tmp_path: Path
) -> None:
    base = request.getfixturevalue(family)
    adapter = make_adapter(base, tmp_path / "adapter")
    merged(base, adapter, tmp_path / "merged")
    names = header(tmp_path / "merged" / "model.safetensors")
    assert names == header(base / "model.safetensors")
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in names)


def test_a_base_under_transformers_names_keeps_them(qwen2_5_vl: Path, tmp_path: Path) -> None:
    base = copy_checkpoint(qwen2_5_vl, tmp_path / "base")
    renamed = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        name = re.sub("^model[.]", "model.language_model.", name)
        renamed[re.sub("^visual[.]", "model.visual.", name)] = tensor
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter")
    result = merged(base, adapter, tmp_path / "merged")["result"]
    assert result["changed_tensors"] == 3 + 3 + 2 + 2  # q_proj; down_proj of both towers; qkv
    assert header(tmp_path / "merged" / "model.safetensors") == header(base / "model.safetensors")


def test_shards_and_their_index_stay_as_they_are(qwen3_vl: Path, tmp_path: Path) -> None:
    base = copy_checkpoint(qwen3_vl, tmp_path / "base")
    (base / "model.safetensors").unlink()
    load(qwen3_vl).save_pretrained(base, max_shard_size="1MB")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    merged(base, adapter, tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == shards
    for name in shards[:-1]:
        assert header(tmp_path / "merged" / name) == header(base / name)
    before, after = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (base, tmp_path / "merged"))
    # The head was tied to the embeddings; now it is a tensor of its own in the last shard.
    assert after["weight_map"] == before["weight_map"] | {"lm_head.weight": shards[-1]}
    assert set(header(tmp_path / "merged" / shards[-1])) == set(header(base / shards[-1])) | {"lm_head.weight"}


def test_one_large_file_becomes_shards(qwen3_vl: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    base = HubCheckpoint.open(qwen3_vl)
    adapter = Adapter.of(base, make_adapter(qwen3_vl, tmp_path / "adapter", target_modules=["lm_head", "q_proj"]))
    build(base, adapter, tmp_path / "one")
    build(base, adapter, tmp_path / "many", shard=1_000_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index.values())) == files
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert index.keys() == whole.keys()
    assert all(torch.equal(load_file(tmp_path / "many" / index[name])[name], whole[name]) for name in whole)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """After a model of 2 blocks, one of 4 raises the process's peak by less than half of what its files are larger.

    Computing is in float32, so that the whole model would raise it by twice of that.
    """
    code = """
import json, sys
from dataclasses import replace
from pathlib import Path
import edgetune
from edgetune_runtime.timing import peak_rss
from random_adapter import write_adapter
from shapes import SHAPES, write_checkpoint
small = SHAPES["small-qwen3-vl"]
text, vision = {"hidden_size": 1024, "intermediate_size": 4096}, small.vision | {"out_hidden_size": 1024}
for layers in (2, 4):
    base, adapter, output = (Path(sys.argv[1], str(layers), name) for name in ("base", "adapter", "merged"))
    text["num_hidden_layers"] = layers
    write_checkpoint(replace(small, text=small.text | text, vision=vision), Path(sys.argv[2]), base)
    write_adapter(base, adapter, rank=16)
    result = edgetune.merge(checkpoint=base, adapter=adapter, output=output).result
    written = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(json.dumps({"peak_mb": peak_rss() / 1e6, "written_mb": written / 1e6, "proof": result["proof"]}))
"""
    words = [str(FRESH), "-c", code, str(tmp_path), str(TINY_MODEL)]
    # The C library keeps what was given back to it, unless it was mapped: pieces of less than 32 MiB are not, later on.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    folder = REPOSITORY / "benchmarks" / "studies"
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    more = large["written_mb"] - small["written_mb"]
    assert more > 40
    assert large["peak_mb"] - small["peak_mb"] < more / 2
    assert large["proof"]["merge_error"] < 1e-4


def test_a_bf16_base_stays_bf16_and_is_rounded_once(qwen3_vl_bf16: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_vl_bf16, tmp_path / "adapter")
    result = merged(qwen3_vl_bf16, adapter, tmp_path / "merged")["result"]
    assert header(tmp_path / "merged" / "model.safetensors") == header(qwen3_vl_bf16 / "model.safetensors")
    exact = PeftModel.from_pretrained(load(qwen3_vl_bf16), str(adapter)).merge_and_unload().state_dict()
    actual = load(tmp_path / "merged", torch.bfloat16).state_dict()
    assert all(torch.equal(actual[name], tensor.to(torch.bfloat16)) for name, tensor in exact.items())
    assert result["dtype"] == "bfloat16"
    assert result["proof"]["merge_error"] < 1e-4 < result["proof"]["written_error"] < 0.2


def test_a_changed_adapter_is_merged_again(qwen3_vl: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
    first = merged(qwen3_vl, adapter, tmp_path / "merged")
    assert merged(qwen3_vl, adapter, tmp_path / "merged")["skipped"]
    shutil.rmtree(adapter)
    make_adapter(qwen3_vl, adapter, seed=1)
    second = merged(qwen3_vl, adapter, tmp_path / "merged")
    assert not second["skipped"]
    assert first["files"]["model.safetensors"] != second["files"]["model.safetensors"]


def test_an_adapter_that_changes_nothing_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter", strength=0)
    refuses(merge(qwen3_vl, adapter, tmp_path / "merged"), 1, "changes nothing", tmp_path / "merged")


def test_an_adapter_lost_in_rounding_is_refused(qwen3_vl_bf16: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_vl_bf16, tmp_path / "adapter", strength=1e-4)
    refuses(merge(qwen3_vl_bf16, adapter, tmp_path / "merged"), 1, "bfloat16 rounding loses", tmp_path / "merged")


@pytest.mark.parametrize(
    ("value", "code", "complaint"),
    [
        (float("nan"), 2, "1 of 24 weights hold values that are not finite, such as base_model"),
        (float("-inf"), 2, "1 of 24 weights hold values that are not finite, such as base_model"),
        (1e38, 1, "logits that are not finite"),
        (2e38, 1, "cannot be merged"),
    ],
    ids=["nan", "inf", "overflow of the answer", "overflow of the weights"],
)
def test_an_adapter_of_a_training_that_diverged_is_one_line(
    qwen3_vl: Path, tmp_path: Path, value: float, code: int, complaint: str
) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter", target_modules=["q_proj", "down_proj", "up_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "q_proj.lora_B" in name)
    weights[name][0, 0] = value
    # The update is 2·B·A: with ones in A its weights are 2e38 and what they make of a state overflows, always;
    # with twos in A and 2e38 in B the weights themselves overflow.
    weights[name.replace("lora_B", "lora_A")][:] = 2 if value > 1e38 else 1
    save_file(weights, adapter / "adapter_model.safetensors")
    refuses(merge(qwen3_vl, adapter, tmp_path / "merged"), code, complaint, tmp_path / "merged")


@pytest.mark.parametrize(
    ("alpha", "complaint"),
    [
        ("NaN", "NaN is no number of JSON"),
        ("-Infinity", "-Infinity is no number of JSON"),
        ("null", "lora_alpha must be a finite number, got None"),
        ('"8"', "lora_alpha must be a finite number, got '8'"),
    ],
)
def test_a_scale_that_is_no_number_is_one_line(qwen3_vl: Path, tmp_path: Path, alpha: str, complaint: str) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', f'"lora_alpha": {alpha}'))
    refuses(merge(qwen3_vl, adapter, tmp_path / "merged"), 2, complaint, tmp_path / "merged")


def test_a_wrong_merge_does_not_pass_the_proof(qwen3_vl: Path, tmp_path: Path) -> None:
    inputs = proof_inputs(HubCheckpoint.open(qwen3_vl))

    @torch.no_grad()
    def logits(model: Any, inputs: list[dict[str, Any]]) -> list[torch.Tensor]:
        return [model(**one, logits_to_keep=48).logits[0] for one in inputs]

    plain = logits(load(qwen3_vl).eval(), inputs)
    right = PeftModel.from_pretrained(load(qwen3_vl), str(make_adapter(qwen3_vl, tmp_path / "right"))).eval()
    active = logits(right, inputs)
    # The mistake of a tool that scales by alpha/r where the adapter wants alpha/sqrt(r).
    other = PeftModel.from_pretrained(load(qwen3_vl), str(make_adapter(qwen3_vl, tmp_path / "wrong", use_rslora=True)))
    wrong = logits(other.merge_and_unload().eval(), inputs)
    with pytest.raises(ParityError, match="do not answer as the adapter does"):
        compare(plain, active, wrong, wrong, torch.float32)
    for written in (wrong, plain):
        with pytest.raises(ParityError, match="written in float32 is off"):
            compare(plain, active, active, written, torch.float32)
    with pytest.raises(ParityError, match="do not answer"):
        compare(plain, active, [part * float("nan") for part in active], active, torch.float32)
    assert compare(plain, active, active, active, torch.float32).same_token == 1


def test_a_trained_adapter_knows_its_base(qwen3_vl: Path, data: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    paths = ["--checkpoint", str(qwen3_vl), "--data", str(data), "--output", str(adapter)]
    options = ["--epochs", "5", "--learning-rate", "0.01", "--precision", "fp32"]
    assert CliRunner().invoke(cli, ["train", *paths, *options]).exit_code == 0
    other = build_qwen3_vl(tmp_path / "other", seed=1)
    result = merge(other, adapter, tmp_path / "merged")
    refuses(result, 2, f"was trained on {qwen3_vl}", tmp_path / "merged")
    assert result.stderr.endswith("hint: give that base, or --allow-other-base if the difference is meant\n")
    with pytest.raises(InputError, match="was trained on") as caught:  # eval, run and grpo have no such option
        Adapter.of(HubCheckpoint.open(other), adapter)
    assert caught.value.hint == "give that base"
    assert merge(other, adapter, tmp_path / "merged", "--allow-other-base").exit_code == 0
    document = merged(qwen3_vl, adapter, tmp_path / "merged")
    trained = json.loads((adapter / "manifest.json").read_text())
    assert document["result"]["base_weights_sha256"] == trained["result"]["base_weights_sha256"]
    assert document["result"]["changed_tensors"] == trained["result"]["adapted_layers"]
    assert document["result"]["trained_on"] == {"data": hashlib.sha256(data.read_bytes()).hexdigest()}


def test_an_adapter_for_other_shapes_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    wide = build_qwen3_vl(tmp_path / "wide", hidden=192)
    adapter = make_adapter(wide, tmp_path / "adapter")
    refuses(merge(qwen3_vl, adapter, tmp_path / "merged"), 2, "lora_A is [4, 384]", tmp_path / "merged")


def test_an_adapter_for_another_family_is_refused(qwen3_vl: Path, qwen2_5_vl: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen2_5_vl, tmp_path / "adapter", target_modules=["model.visual.blocks.0.mlp.gate_proj"])
    result = merge(qwen3_vl, adapter, tmp_path / "merged")
    refuses(result, 2, "adapts model.visual.blocks.0.mlp.gate_proj, which", tmp_path / "merged")


def test_an_adapter_for_more_layers_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    deep = build_qwen3_vl(tmp_path / "deep", layers=5)
    adapter = make_adapter(deep, tmp_path / "adapter")
    refuses(merge(qwen3_vl, adapter, tmp_path / "merged"), 2, "layers.4", tmp_path / "merged")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("adapter_config.json", None, "adapter_config.json: no such file"),
        ("adapter_config.json", '{"peft_type": "IA3"}', "only LORA"),
        ("adapter_config.json", "[1]", "must hold a JSON object"),
        ("adapter_model.safetensors", None, "adapter_model.safetensors: no such file"),
        ("adapter_model.safetensors", "cut", "not a safetensors file"),
    ],
)
def test_a_bad_adapter_folder_is_one_line(
    qwen3_vl: Path, tmp_path: Path, file: str, content: str | None, complaint: str
) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
    (adapter / file).unlink()
    if content is not None:
        (adapter / file).write_text(content)
    refuses(merge(qwen3_vl, adapter, tmp_path / "merged"), 2, complaint, tmp_path / "merged")


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("preprocessor_config.json", None, "no preprocessor_config.json"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", "cut", "not a safetensors file"),
        ("config.json", '{"model_type": "qwen3_vl", "quantization_config": {}}', "quantized"),
    ],
)
def test_a_bad_base_is_one_line(qwen3_vl: Path, tmp_path: Path, file: str, content: str | None, complaint: str) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
    base = copy_checkpoint(qwen3_vl, tmp_path / "base")
    (base / file).unlink()
    if content is not None:
        (base / file).write_text(content)
    refuses(merge(base, adapter, tmp_path / "merged"), 2, complaint, tmp_path / "merged")


def test_a_config_that_transformers_stumbles_over_is_one_line(qwen3_vl: Path, tmp_path: Path) -> None:
    adapter = make_adapter(qwen3_vl, tmp_path / "adapter")
    base = copy_checkpoint(qwen3_vl, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 0
    (base / "config.json").write_text(json.dumps(config))
    refuses(merge(base, adapter, tmp_path / "merged"), 2, "the model cannot be loaded", tmp_path / "merged")
