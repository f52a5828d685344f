"""Loading a bundle's description, and refusing what is not one."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgetune_runtime.bundle import Bundle, Limits
from edgetune_runtime.errors import BundleError
from edgetune_runtime.families import FAMILIES
from edgetune_runtime.images.smart import ImageSpec

FAMILY = FAMILIES["qwen3_vl"]


def description(spec: ImageSpec) -> dict[str, Any]:
    return {
        "format": "onnx",
        "precision": "int4",
        "target": "cpu",
        "family": "qwen3_vl",
        "box_frame": "norm1000",
        "image": spec.to_dict(),
        "chat": asdict(FAMILY.chat),
        "ground_prompt": "Find {phrase}!",
        "tokens": {"eos": [2, 0], "image": 12, "vision_start": 9},
        "rope": {"theta": 5e6, "mrope_section": [12, 10, 10], "interleaved": True, "head_dim": 64},
        "model": {"layers": 6, "kv_heads": 2, "head_dim": 64, "hidden": 384, "deepstack": 3},
        "limits": {"max_length": 2048, "max_image_tokens": 256},
        "files": {"decoder": "onnx/decoder.onnx", "tokenizer": "tokenizer.json"},
    }


@pytest.fixture
def spec(qwen3_vl: Path) -> ImageSpec:
    """Return the preprocessing of the small checkpoint."""
    return ImageSpec.from_checkpoint(qwen3_vl)


def write(folder: Path, fields: dict[str, Any]) -> Path:
    (folder / "onnx").mkdir(parents=True)
    files = {}
    for name in ("onnx/decoder.onnx", "tokenizer.json"):
        (folder / name).write_text(name)
        files[name] = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "size": len(name)}
    manifest = {"schema": 1, "stage": "export", "result": {"bundle": fields}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_everything_is_in_the_manifest(tmp_path: Path, spec: ImageSpec) -> None:
    bundle = Bundle.load(write(tmp_path / "b", description(spec)))
    assert (bundle.format, bundle.precision, bundle.family.name) == ("onnx", "int4", "qwen3_vl")
    assert bundle.spec == spec and bundle.family.patch_size == spec.patch_size
    assert bundle.family.ground_prompt == "Find {phrase}!"  # the bundle's own, not this version's
    assert bundle.chat == FAMILY.chat
    assert bundle.eos == (2, 0) and dict(bundle.tokens) == {"image": 12, "vision_start": 9}
    assert bundle.rope.mrope_section == (12, 10, 10) and bundle.limits == Limits(2048, 256)
    assert bundle.files["decoder"].read_text() == "onnx/decoder.onnx"


def test_a_bundle_can_be_moved(tmp_path: Path, spec: ImageSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "b", description(spec))
    shutil.move(tmp_path / "b", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.load("elsewhere")
    monkeypatch.chdir("/")
    assert bundle.files["tokenizer"].is_file()


def test_altered_weights_are_refused_unless_asked_not_to_look(tmp_path: Path, spec: ImageSpec) -> None:
    folder = write(tmp_path / "b", description(spec))
    (folder / "onnx/decoder.onnx").write_text("onnx/dEcoder.onnx")
    with pytest.raises(BundleError, match="sha256 differs"):
        Bundle.load(folder)
    for options in ({"skip_larger_than": 10}, {"verify": False}):
        assert Bundle.load(folder, **options).precision == "int4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gwen3_vl"}, "unknown model family 'gwen3_vl'"),
        ({"family": None}, "missing field 'family'"),
        ({"box_frame": "resized"}, "box_frame 'resized' is not that of Qwen3-VL"),
        ({"image": {"patch_size": 16}}, "image preprocessing: wrong or missing field"),
        ({"chat": {"prefix": ""}}, "missing 5 required"),
        ({"tokens": {"image": 12}}, "missing field 'eos'"),
        ({"limits": {"max_length": 5}}, "max_image_tokens"),
        ({"files": {"decoder": "../secret"}}, "used but not listed"),
        ({"files": {"decoder": "onnx/other.onnx"}}, "used but not listed"),
    ],
)
def test_broken_descriptions(tmp_path: Path, spec: ImageSpec, change: dict[str, Any], message: str) -> None:
    fields = {key: value for key, value in (description(spec) | change).items() if value is not None}
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(write(tmp_path / "b", fields))
    assert str(caught.value).startswith(str(tmp_path / "b" / "manifest.json"))


def test_other_stage_folders_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 1, "stage": "merge", "result": {}, "files": {}}')
    with pytest.raises(BundleError, match="a 'merge' folder, not a bundle"):
        Bundle.load(tmp_path)
