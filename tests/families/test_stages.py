"""train, merge, eval and run of every family that docs/families.md promises, against transformers' own answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from builders import REPOSITORY, copy_checkpoint
from edgetune_core.checkpoint import HubCheckpoint, tensor_shapes
from edgetune_core.conversation import prepare
from edgetune_core.torch_runner import worker as torch_worker
from edgetune_core.torch_runner.model import TorchModel
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.images.load import load_image
from edgetune_runtime.records import read_records
from edgetune_runtime.session import Session
from edgetune_train.batch import Collator
from edgetune_train.lora import resolve_targets
from edgetune_train.vision import FeatureInputs, PixelInputs
from families import reference
from families.checkpoints import BUILDERS
from families.conftest import Build, run

_transformers: Any = transformers
TRAINABLE = [family.name for family in FAMILIES.values() if family.modules is not None]
EXPORTED = [(name, way) for name in BUILDERS for way in ("ort", "plain")[: 2 - FAMILIES[name].recurrent]]
NEW_TOKENS = 8


def test_every_trainable_family_has_a_checkpoint_here() -> None:
    assert set(TRAINABLE) == {*BUILDERS, "qwen2_5_vl", "qwen3_vl"}


def test_the_matrix_in_the_documentation_is_what_is_tested_here() -> None:
    page = (REPOSITORY / "docs" / "families.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in page.split("\n\n")[2].splitlines()[2:]]
    expected = []
    for family in FAMILIES.values():
        types = ", ".join(f"`{kind}`" for kind in family.model_types)
        if family.modules is None:
            verbs = ["no: its code is on the hub, only its box format is readable"] + ["no"] * 9
        else:
            verbs = ["pass"] * 10
            if family.recurrent:
                verbs[5], verbs[9] = "pass: dialect `ort`", "no: its layers with a state are not written for TensorRT"
        expected.append([family.title, types, *verbs])
    assert sorted(table) == sorted(expected)


@pytest.mark.parametrize("name", BUILDERS)
def test_training_learns_and_merging_keeps_it(name: str, tiny: Build, merged: Build, data: Path) -> None:
    folder = merged(name)
    losses = json.loads((folder / "adapter" / "manifest.json").read_text())["result"]["loss"]
    assert losses["last"] < losses["first"]
    assert tensor_shapes(folder / "merged") == tensor_shapes(tiny(name))
    base = _transformers.AutoModelForImageTextToText.from_pretrained(tiny(name))
    active = PeftModel.from_pretrained(base, folder / "adapter")
    plain = _transformers.AutoModelForImageTextToText.from_pretrained(folder / "merged")
    inputs = reference.question(tiny(name), load_image(data.parent / "0.png"), "What is it?")
    with torch.no_grad():
        expected = active(**inputs).logits
        atol = 1e-4 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(plain(**inputs).logits, expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_batches_are_what_transformers_would_feed(name: str, tiny: Build, data: Path) -> None:
    """Logits of a padded batch of several pictures, from pixels and from kept features, against one by one."""
    base = HubCheckpoint.open(tiny(name))
    model = base.load_model(torch.float32).eval()
    samples = prepare(read_records(data), base.family, base.spec, base.tokenizer)[:3]
    expected = []
    for sample in samples:
        words = sample.record.prompt(base.family)  # type: ignore[union-attr]
        inputs = reference.question(tiny(name), load_image(sample.images[0]), words)
        assert inputs["input_ids"][0].tolist() == sample.prompt_ids
        with torch.no_grad():
            expected.append(model(**inputs).logits[0, -1])
    for images in (
        PixelInputs(base.spec),
        FeatureInputs(model, base.spec, 1 << 24),
        FeatureInputs(model, base.spec, 0),
    ):
        batch = Collator.of(base, images).prompts(samples)
        with torch.no_grad():
            last = model(**batch).logits[:, -1]
        torch.testing.assert_close(last, torch.stack(expected), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", BUILDERS)
def test_eval_and_run_say_what_transformers_says(
    name: str, merged: Build, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = merged(name) / "merged"
    model = _transformers.AutoModelForImageTextToText.from_pretrained(checkpoint)
    tokenizer = _transformers.AutoTokenizer.from_pretrained(checkpoint)
    family = FAMILIES[name]
    stop = [tokenizer.convert_tokens_to_ids(token) for token in family.stop_tokens]
    records = read_records(data)[:4]
    texts = []
    for record in records:
        inputs = reference.question(checkpoint, load_image(record.image), record.prompt(family))
        search = _transformers.GenerationConfig(
            do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=stop, pad_token_id=stop[0]
        )
        new = model.generate(**inputs, generation_config=search)[0, inputs["input_ids"].shape[1] :].tolist()
        ended = next((place for place, token in enumerate(new) if token in stop), len(new))
        if record.boxes is None:  # answered in words, without control tokens and white space around them
            texts.append(tokenizer.decode(new[:ended], skip_special_tokens=True).strip())
        else:
            texts.append(tokenizer.decode(new[:ended]).removeprefix(family.chat.before_answer))

    output = tmp_path / "answers.json"
    options = ["--limit", "4", "--warmup", "0", "--max-new-tokens", str(NEW_TOKENS), "--threads", "1"]
    arguments = ["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(output), *options]
    assert torch_worker.main(arguments) == 0
    assert [row["raw"] for row in json.loads(output.read_text())["rows"]] == texts

    capsys.readouterr()
    asked = ["--json", "--max-new-tokens", NEW_TOKENS, "--out", tmp_path / "drawn.png"]
    run("run", checkpoint, records[0].image, records[0].text, *asked)
    [result] = json.loads(capsys.readouterr().out)["results"]
    row = json.loads(output.read_text())["rows"][0]
    assert [item["box"] for item in result["detections"]] == row["boxes"] and result["status"] == row["status"]
    assert (tmp_path / "drawn.png").is_file()


@pytest.mark.parametrize("name", ["internvl", "llava", "llava_onevision"])
def test_published_names_are_read_and_written(name: str, tiny: Build, data: Path, tmp_path: Path) -> None:
    """A checkpoint under the names of the hub, of which every part is adapted, keeps its names and answers."""
    modules = FAMILIES[name].modules
    assert modules is not None
    base = copy_checkpoint(tiny(name), tmp_path / "base")
    model = _transformers.AutoModelForImageTextToText.from_pretrained(tiny(name))
    published = {modules.hub_name(key): value.contiguous().clone() for key, value in model.state_dict().items()}
    tower = "vision_tower.vision_model." if "llava" in name else "vision_tower."
    assert any(key.startswith(tower) for key in published)
    assert {"language_model.lm_head.weight", "language_model.model.embed_tokens.weight"} <= set(published)
    save_file(published, base / "model.safetensors", metadata={"format": "pt"})
    loaded = _transformers.AutoModelForImageTextToText.from_pretrained(base).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())

    options = ["--epochs", 1, "--rank", 4, "--learning-rate", 0.02, "--precision", "fp32", "--batch-size", 3]
    run("train", "--checkpoint", base, "--data", data, "--output", tmp_path / "adapter", "--vision-lora", *options)
    run("merge", "--checkpoint", base, "--adapter", tmp_path / "adapter", "--output", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == set(published)
    changed = {key for key, value in written.items() if not torch.equal(value, published[key])}
    for part in (tower, "multi_modal_projector.", "language_model.model.layers."):
        assert any(key.startswith(part) for key in changed)


@pytest.mark.parametrize("name", BUILDERS)
def test_module_names_are_those_of_transformers(name: str, tiny: Build) -> None:
    modules = FAMILIES[name].modules
    assert modules is not None
    model = HubCheckpoint.open(tiny(name)).load_model(torch.float32)
    named = dict(model.named_modules())
    assert {modules.text_root, modules.vision_root, modules.vision_blocks, *modules.mergers} <= set(named)
    found: set[str] = set()
    for block in named[modules.blocks]:
        linears = {path for path, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        assert linears == set(modules.linears) or FAMILIES[name].recurrent
        found |= linears
    assert found == set(modules.linears)
    seeing = resolve_targets(model, modules, ["auto"], vision=True)
    blind = resolve_targets(model, modules, ["auto"], vision=False)
    assert all(re.fullmatch(modules.lora_targets, path) for path in blind)
    assert {path for path in seeing if path not in blind} == {path for path in seeing if modules.sees(path)}
    assert any(path.startswith(modules.mergers) for path in seeing)


@pytest.mark.parametrize(("name", "dialect"), EXPORTED)
def test_a_bundle_says_what_its_checkpoint_says(
    name: str, dialect: str, merged: Build, data: Path, tmp_path: Path
) -> None:
    """To the letter, control tokens and all, of boxes and of answers in words."""
    checkpoint, bundle = merged(name) / "merged", tmp_path / "bundle"
    options = ["--precision", "fp32", "--dialect", dialect]
    run("export", "--checkpoint", checkpoint, "--format", "onnx", "--output", bundle, *options)
    models: list[Any] = [Session.load(bundle), TorchModel(checkpoint, adapter=None, device="cpu")]
    for record in read_records(data)[:4]:
        prompt = record.prompt(FAMILIES[name])
        ours = models[0].answer(record.image, prompt, max_new_tokens=NEW_TOKENS, constrained=False)
        theirs = models[1].answer(record.image, prompt, max_new_tokens=NEW_TOKENS)
        assert (ours.text, ours.detections, ours.status) == (theirs.text, theirs.detections, theirs.status)


def test_a_checkpoint_takes_no_engine(tiny: Build, data: Path) -> None:
    with pytest.raises(InputError, match="runs under torch; --engine is for bundles"):
        run("run", tiny("llava"), data.parent / "0.png", "cup", "--engine", "onnx")
