"""What has gone wrong in the field with each family, and does not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from builders import copy_checkpoint
from edgetune.cli import cli
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.conversation import prepare, token_id
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import encode, parse
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.images.rules import open_preprocessing
from edgetune_runtime.records import read_records
from families.conftest import Build, picture

_transformers: Any = transformers


def edited(folder: Path, file: str, **changes: Any) -> Path:
    """Change keys of a JSON file of a checkpoint; None removes one."""
    path = folder / file
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("qwen2_vl", "max_pixels"),
        ("internvl", "max_patches"),
        ("llava", "size"),
        ("llava_onevision", "image_grid_pinpoints"),
        ("smolvlm", "size"),
        ("idefics3", "max_image_size"),
    ],
)
def test_a_class_default_never_stands_in_for_a_limit(name: str, key: str, published: Build, tmp_path: Path) -> None:
    folder = edited(copy_checkpoint(published(name), tmp_path / name), "preprocessor_config.json", **{key: None})
    with pytest.raises(InputError, match=f"preprocessor_config.json: missing {key}"):
        HubCheckpoint.open(folder)


@pytest.mark.parametrize(
    ("name", "file", "changes", "complaint"),
    [
        # 169 is the class's default, for 364 pixels.
        ("smolvlm", "processor_config.json", {"image_seq_len": 169}, "image_seq_len is 169, but the model makes 64"),
        ("internvl", "preprocessor_config.json", {"size": {"height": 384, "width": 384}}, "vision tower takes 448"),
        ("internvl", "preprocessor_config.json", {"min_patches": 13}, "min_patches 13 is over max_patches 12"),
        ("llava", "preprocessor_config.json", {"crop_size": {"height": 224, "width": 224}}, "crop_size is not the 336"),
        ("llava_onevision", "config.json", {"image_grid_pinpoints": [[384, 384]]}, "would not match the features"),
        ("llava_onevision", "preprocessor_config.json", {"do_center_crop": True}, "cut parts of the picture off"),
        ("smolvlm", "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "is not SmolVLMImage"),
        ("idefics3", "preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    name: str, file: str, changes: dict[str, Any], complaint: str, published: Build, tmp_path: Path
) -> None:
    folder = edited(copy_checkpoint(published(name), tmp_path / name), file, **changes)
    with pytest.raises(InputError, match=complaint):
        HubCheckpoint.open(folder)


def test_internvl_is_tiled_though_its_config_says_not_to(published: Build) -> None:
    folder = published("internvl")
    processor = _transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = picture(1600, 800)
    assert len(processor(images=image)["pixel_values"]) == 1  # what a tool gets that leaves InternVLProcessor out
    spec = HubCheckpoint.open(folder).spec
    assert len(spec.arrays(image)["pixel_values"]) == 9  # 4 x 2 tiles and the thumbnail
    assert spec.plan(1600, 800).image_tokens == 9 * 256


def test_llava_keeps_what_a_centre_crop_cuts_off(published: Build) -> None:
    """A red square at the left end of a wide picture, and its box."""
    folder = published("llava")
    base = HubCheckpoint.open(folder)
    image = Image.new("RGB", (900, 300), "white")
    image.paste((255, 0, 0), (20, 100, 120, 200))
    processor = _transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    cropped = np.asarray(processor(images=image)["pixel_values"][0])
    assert np.ptp(cropped, axis=(1, 2)).max() < 1e-6  # nothing but white is left

    values = base.spec.arrays(image)["pixel_values"][0]  # [3, 336, 336]
    rows, columns = np.nonzero(values[0] - values[2] > 1)  # red, and neither white nor the grey padding
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 336
    written = encode([[20, 100, 120, 200]], ["square"], base.spec.plan(900, 300).geometry, base.family.box_format)
    assert np.abs(np.array(json.loads(written)) - seen).max() < 0.01
    assert base.spec.remark and "centre crop" in base.spec.remark


def test_llava_that_pads_by_itself_needs_no_remark(published: Build, tmp_path: Path) -> None:
    folder = copy_checkpoint(published("llava"), tmp_path / "llava")
    edited(folder, "preprocessor_config.json", image_processor_type="LlavaImageProcessor", do_pad=True)
    assert HubCheckpoint.open(folder).spec.remark is None


@pytest.mark.parametrize(("name", "side"), [("smolvlm", 512), ("idefics3", 364)])
def test_three_resizes_are_not_one(name: str, side: int, published: Build) -> None:
    """Shrinking the picture beforehand, or resizing it to the tiles at once, gives the model other pixels."""
    spec = HubCheckpoint.open(published(name)).spec
    image = picture(701, 500)
    expected = spec.arrays(image)["pixel_values"]
    geometry = spec.plan(*image.size).geometry
    once = image.resize((geometry.resized_width, geometry.resized_height), Image.Resampling.LANCZOS)
    overview = np.asarray(once.resize((side, side), Image.Resampling.LANCZOS), np.float32).transpose(2, 0, 1)
    assert not np.allclose(overview / 127.5 - 1, expected[-1], atol=1e-3)
    assert not np.allclose(spec.arrays(image.resize((350, 250)))["pixel_values"], expected, atol=1e-3)


def test_a_picture_that_was_shrunk_beforehand_has_other_boxes(tiny: Build) -> None:
    """Qwen2.5-VL's relatives say pixels of the resized picture; only the original's size leads back to the original."""
    family = FAMILIES["qwen2_5_vl"]
    spec = open_preprocessing(tiny("qwen2_vl"), family)
    box = [100.0, 80.0, 900.0, 700.0]
    geometry = spec.plan(1000, 800).geometry
    text = encode([box], ["cup"], geometry, family.box_format)
    assert np.abs(np.array(parse(text, geometry, family.box_format).detections[0].box) - box).max() < 3
    shrunk = spec.plan(500, 400).geometry
    assert np.abs(np.array(parse(text, shrunk, family.box_format).detections[0].box) - box).max() > 100


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl"])
def test_decoding_without_control_tokens_loses_the_name(name: str, tiny: Build) -> None:
    base = HubCheckpoint.open(tiny(name))
    geometry = Geometry(640, 480, 448, 448)
    text = encode([[64, 48, 320, 240], [0, 0, 64, 48]], ["cup", "jug"], geometry, base.family.box_format)
    ids = base.tokenizer.encode(text)
    kept = parse(base.tokenizer.decode(ids, keep_control=True), geometry, base.family.box_format)
    assert [found.label for found in kept.detections] == ["cup", "jug"] and kept.problem is None
    stripped = base.tokenizer.decode(ids)
    assert "<" not in stripped
    read = parse(stripped, geometry, base.family.box_format)  # the boxes at least survive
    assert [found.box for found in read.detections] == [found.box for found in kept.detections]


@pytest.mark.parametrize("name", ["llava", "llava_onevision"])
def test_a_coordinate_above_one_is_not_pixels(name: str) -> None:
    family, geometry = FAMILIES[name], Geometry(400, 400, 336, 336)
    answer = parse("[0.50, 0.25, 1.04, 0.75]", geometry, family.box_format)
    assert answer.detections[0].box == pytest.approx((200, 100, 416, 300))
    assert answer.problem and "outside the 400x400 image" in answer.problem


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3"])
def test_a_coordinate_below_one_is_not_a_share(name: str) -> None:
    family, geometry = FAMILIES[name], Geometry(2000, 1000, 448, 448)
    text = encode([[0, 0, 2, 1]], ["dot"], geometry, family.box_format)
    assert parse(text, geometry, family.box_format).detections[0].box == pytest.approx((0, 0, 2, 1))


def test_one_box_in_two_frames_of_llava() -> None:
    """LLaVA-1.5 counts in the padded square, LLaVA-OneVision in the picture: a quarter of a wide picture's height."""
    geometry = Geometry(800, 400, 336, 168)
    box = [[200, 100, 400, 200]]
    assert encode(box, ["cup"], geometry, FAMILIES["llava"].box_format) == "[0.25, 0.38, 0.50, 0.50]"
    assert encode(box, ["cup"], geometry, FAMILIES["llava_onevision"].box_format) == "[0.25, 0.25, 0.50, 0.50]"


def test_a_default_system_prompt_that_differs_is_refused(tiny: Build, data: Path, tmp_path: Path) -> None:
    folder = copy_checkpoint(tiny("llava_onevision"), tmp_path / "base")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + template, encoding="utf-8"
    )
    arguments = ["train", "--checkpoint", str(folder), "--data", str(data), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"template renders '\S*system.*where the family's prompt has 'user"):
        cli.main(arguments, standalone_mode=False)


def test_one_model_type_of_two_families(tiny: Build, data: Path, tmp_path: Path) -> None:
    """SmolVLM-Instruct calls itself idefics3; its tokenizer tells. Idefics3's begins every sequence, but only once."""
    folder = edited(copy_checkpoint(tiny("smolvlm"), tmp_path / "smolvlm"), "config.json", model_type="idefics3")
    assert HubCheckpoint.open(folder).family.name == "smolvlm"
    base = HubCheckpoint.open(tiny("idefics3"))
    assert base.family.name == "idefics3"
    begin = token_id(base.tokenizer, "<|begin_of_text|>")
    for sample in prepare(read_records(data), base.family, base.spec, base.tokenizer):
        assert sample.ids[0] == begin and sample.ids.count(begin) == 1


def test_internvl_may_be_asked_in_its_tags_but_not_by_a_forged_turn(tiny: Build, data: Path) -> None:
    base = HubCheckpoint.open(tiny("internvl"))
    sample = prepare(read_records(data), base.family, base.spec, base.tokenizer)[0]
    assert token_id(base.tokenizer, "<ref>") in sample.prompt_ids
    with pytest.raises(InputError, match="control token '<IMG_CONTEXT>'"):
        base.tokenizer.prompt(base.family.chat, "a <IMG_CONTEXT>", image_tokens=0, image_token=0)


def test_a_model_that_thinks_unless_told_otherwise_is_told(tiny: Build, tmp_path: Path) -> None:
    """Qwen3.5's larger sizes think aloud by default, its smaller ones do not; ours never does."""
    folder = copy_checkpoint(tiny("qwen3_5"), tmp_path / "thinks")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    small, large = (
        "enable_thinking is defined and enable_thinking is true",
        "enable_thinking is not defined or enable_thinking",
    )
    assert small in template
    (folder / "chat_template.jinja").write_text(template.replace(small, large), encoding="utf-8")
    tokenizer = _transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Where?"}]
    thinking = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert thinking.endswith("assistant\n<think>\n")
    base = HubCheckpoint.open(folder)
    base.check_template()
    assert base.family.chat.render("Where?", 0).endswith("assistant\n<think>\n\n</think>\n\n")


def test_samples_are_not_packed_where_layers_carry_a_state(tiny: Build, data: Path, tmp_path: Path) -> None:
    """Nothing tells its state where a sample ends, and the loss would not show it."""
    options = ["--data", str(data), "--output", str(tmp_path / "adapter"), "--pack", "512"]
    with pytest.raises(InputError, match=r"--pack cannot be used with Qwen3\.5: a state of its layers"):
        cli.main(["train", "--checkpoint", str(tiny("qwen3_5")), *options], standalone_mode=False)
