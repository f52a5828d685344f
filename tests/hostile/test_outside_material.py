"""Material from outside, damaged at random: it is read as what it says, or refused in one line. Nothing else happens.

Each test reads a file of ours with something wrong in it. Whatever leaves a reader is an `EdgetuneError`: another
exception would be a traceback. What a reader accepts it reads again as the same. A reader that hangs is ended by the
timeout of the suite.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import answers
from edgetune_core.option_files import read_values
from edgetune_runtime.bench.results import read_results
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.codec.grounding import parse
from edgetune_runtime.errors import EdgetuneError, ImageError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.images.load import load_image, upright_size
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.json_file import decode_json
from edgetune_runtime.records import Record, read_entries
from edgetune_runtime.terminal import printable
from hostile.generators import JUNK, damaged_bytes, damaged_json

pytestmark = pytest.mark.timeout(300 if "fuzz" not in os.environ.get("HYPOTHESIS_PROFILE", "") else 7200)
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "DDS", "PPM", "TGA", "PCX", "SGI", "JPEG2000")
RECORDS: list[dict[str, Any]] = [
    {"image": "a.png", "text": "the cup", "bbox": [[1, 2, 30, 40], [5, 5.5, 9, 9]], "label": ["cup", "mug"], "id": 7},
    {"image": "a.png", "question": "What?", "answer": ["a", "b"], "meta": {"by": ["me", {"n": 1}]}},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>Find the <ref-object>"},
            {"role": "assistant", "content": "<bbox> and <bbox>"},
        ],
        "images": ["a.png"],
        "objects": {"ref": ["cup"], "bbox": [[1, 2, 3, 4], [5, 6]]},
    },
]


def outcome(read: Callable[[], Any]) -> Any:
    """What a reader returns, or None where it refuses in one line that a terminal shows as it is."""
    try:
        return read()
    except EdgetuneError as error:
        told = str(error)
        assert told and "\n" not in told and len(told) <= 2000
        assert error.exit_code in (1, 2, 3, 4)
        printable(told, "ascii").encode("ascii")
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files of this module go, with one picture of 64x48."""
    path = tmp_path_factory.mktemp("hostile")
    Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(path / "a.png")
    return path


@relaxed
@given(st.data())
def test_records(folder: Path, data: st.DataObject) -> None:
    line = data.draw(damaged_json(data.draw(st.sampled_from(RECORDS))))
    path = folder / "data.jsonl"
    path.write_bytes(line + b"\n")
    found = outcome(lambda: read_entries(path))
    if found:
        assert repr(read_entries(path)) == repr(found)  # equality of records is that of arrays, which have none
        for record in found:
            if isinstance(record, Record) and record.boxes is not None:
                x1, y1, x2, y2 = record.boxes.T
                assert (x1 < x2).all() and (y1 < y2).all() and (x1 >= 0).all() and (x2 <= 64).all()


@relaxed
@given(st.data())
def test_pictures(folder: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    whole = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = data.draw(st.integers(1, 8))
    mode = data.draw(st.sampled_from(["RGB", "L"]))
    Image.new(mode, (20, 12)).save(whole, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    changed = data.draw(damaged_bytes(whole.getvalue()))
    path = folder / "picture"
    path.write_bytes(changed)
    size, image = outcome(lambda: upright_size(path)), outcome(lambda: load_image(changed))
    if image is not None:
        assert image.mode == "RGB"
        assert size in (None, image.size)


@relaxed
@given(st.data())
def test_results_of_a_measurement(folder: Path, data: st.DataObject) -> None:
    rows = [answers.ground("1", [[0, 0, 5, 5]], number=1), answers.vqa("2", "red", ["red"], 2)]
    found, said = answers.results({"base": rows, "int4": rows, "bad": "no engine"}, baseline="base")
    value = found.to_dict()
    value["rows"][1]["answers"] = [answer.to_dict() for answer in said["int4"]]
    path = folder / "results.json"
    path.write_bytes(data.draw(damaged_json(value)))
    read = outcome(lambda: read_results(path))
    if read is not None:
        path.write_text(json.dumps(read.to_dict(), allow_nan=False))
        assert read_results(path) == read


@relaxed
@given(st.data())
def test_options_in_files(folder: Path, data: st.DataObject) -> None:
    text = '# a run\ndata = "train.jsonl"\nepochs = 3\nlearning-rate = 1e-4\nparts = ["a", "b"]\n\n[more]\nx = 0x10\n'
    for name, source in (("c.toml", text), ("c.yaml", "data: train.jsonl\nepochs: 3\nparts: &a [x, y]\nmore: *a\n")):
        (folder / name).write_bytes(data.draw(damaged_bytes(source.encode())))
        outcome(lambda name=name: read_values(folder / name))  # type: ignore[misc]


@pytest.mark.parametrize("language", ["toml", "yaml"])
@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "9" * 5000, "0x" + "f" * 5000, '"\\ud800"', "2020-99-99"])
def test_options_that_no_parser_likes(folder: Path, language: str, value: str) -> None:
    path = folder / f"odd.{language}"
    path.write_text(f"epochs {'=' if language == 'toml' else ':'} {value}\n")
    outcome(lambda: read_values(path))


@relaxed
@given(st.data())
def test_preprocessor_and_model_configs(qwen3_vl: Path, folder: Path, data: st.DataObject) -> None:
    names = ["preprocessor_config.json", "config.json"]
    chosen = data.draw(st.sampled_from(names))
    place = folder / "checkpoint"
    place.mkdir(exist_ok=True)
    for name in names:
        content = (qwen3_vl / name).read_bytes()
        (place / name).write_bytes(data.draw(damaged_json(json.loads(content))) if name == chosen else content)
    spec = outcome(lambda: ImageSpec.from_checkpoint(place))
    if spec is not None:
        assert spec == ImageSpec.from_checkpoint(place)


@relaxed
@given(st.data())
def test_manifests_of_bundles(qwen3_vl_bundle: Path, folder: Path, data: st.DataObject) -> None:
    place = folder / "bundle"
    place.mkdir(exist_ok=True)
    for entry in qwen3_vl_bundle.iterdir():
        if entry.name != "manifest.json" and not (place / entry.name).exists():
            (place / entry.name).symlink_to(entry)
    manifest = json.loads((qwen3_vl_bundle / "manifest.json").read_bytes())
    (place / "manifest.json").write_bytes(data.draw(damaged_json(manifest)))
    outcome(lambda: Bundle.load(place, verify=False))


@relaxed
@given(st.data())
def test_configs_of_adapters(folder: Path, data: st.DataObject) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    from edgetune_core.adapter import Adapter

    place = folder / "adapter"
    place.mkdir(exist_ok=True)
    tensors = {f"base_model.model.q_proj.lora_{letter}.weight": torch.ones(2, 2) for letter in "AB"}
    safetensors.save_file(tensors, place / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "none"}
    (place / "adapter_config.json").write_bytes(data.draw(damaged_json(config)))
    outcome(lambda: Adapter.open(place))


ANSWERS = st.text() | st.lists(
    st.sampled_from(['[{"bbox_2d": [', "1, 2, 30, 40", '], "label": "cup"}]', "<box>(1,2),(3,4)</box>", "\n"])
    | st.sampled_from(["<think>", "</think>", "```json", "[[", "9" * 400, "NaN", "1e999", "\ud800", '"', "}", "]" * 99])
    | st.text(max_size=4)
).map("".join)  # fmt: skip


@relaxed
@given(ANSWERS, st.sampled_from(sorted(FAMILIES)))
def test_answers(text: str, family: str) -> None:
    geometry = Geometry(width=640, height=480, resized_width=644, resized_height=476)
    answer = parse(text, geometry, FAMILIES[family].box_format)
    for found in answer.detections:
        assert np.isfinite(found.box).all()


@relaxed
@given(JUNK)
def test_junk_that_json_can_spell_is_read_as_it_is(value: Any) -> None:
    assert decode_json(json.dumps(value)) == value


def test_an_array_with_too_many_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="over the limit of 99"):
        load_image(np.zeros((10, 10, 3), np.uint8), max_image_pixels=99)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_size_of_a_turned_picture_is_that_of_its_pixels(kind: str, turn: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (20, 12)).save(tmp_path / "a", kind, exif=exif)
    assert upright_size(tmp_path / "a") == load_image(tmp_path / "a").size == ((20, 12) if turn < 5 else (12, 20))
