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
SPEC = ImageSpec(16, 2, 2, 1024, 256 * 1024, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255, 3)


def description() -> dict[str, Any]:
    return {
        "schema": 2,
        "format": "onnx",
        "precision": "int4",
        "target": "cpu",
        "family": "qwen3_vl",
        "boxes": FAMILY.box_format.to_dict(),
        "image": SPEC.to_dict(),
        "chat": asdict(FAMILY.chat),
        "ground_prompt": "Find {phrase}!",
        "tokens": {"eos": [2, 0], "image": 12, "vision_start": 9},
        "rope": {"theta": 5e6, "mrope_section": [12, 10, 10], "interleaved": True, "head_dim": 64},
        "model": {"layers": 6, "kv_heads": 2, "head_dim": 64, "hidden": 384, "vocabulary": 99, "deepstack": 3},
        "limits": {"max_length": 2048, "max_image_tokens": 256},
        "files": dict.fromkeys(("vision", "embed", "decoder"), "onnx/decoder.onnx") | {"tokenizer": "tokenizer.json"},
    }


def write(folder: Path, fields: dict[str, Any]) -> Path:
    (folder / "onnx").mkdir(parents=True)
    files = {}
    for name in ("onnx/decoder.onnx", "tokenizer.json"):
        (folder / name).write_text(name)
        files[name] = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "size": len(name)}
    manifest = {"schema": 1, "stage": "export", "result": {"bundle": fields}, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_everything_is_in_the_manifest(tmp_path: Path) -> None:
    bundle = Bundle.load(write(tmp_path / "b", description()))
    assert (bundle.format, bundle.precision, bundle.family) == ("onnx", "int4", "qwen3_vl")
    assert bundle.spec == SPEC and bundle.box_format == FAMILY.box_format
    assert bundle.ground_prompt == "Find {phrase}!" and bundle.request("it") == "Find it!"
    assert bundle.chat == FAMILY.chat
    assert bundle.eos == (2, 0) and dict(bundle.tokens) == {"image": 12, "vision_start": 9}
    assert bundle.rope.mrope_section == (12, 10, 10) and bundle.limits == Limits(2048, 256)
    assert bundle.files["decoder"].read_text() == "onnx/decoder.onnx"


def test_a_bundle_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "b", description())
    shutil.move(tmp_path / "b", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.load("elsewhere")
    monkeypatch.chdir("/")
    assert bundle.files["tokenizer"].is_file()


def test_altered_weights_are_refused_unless_asked_not_to_look(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", description())
    (folder / "onnx/decoder.onnx").write_text("onnx/dEcoder.onnx")
    with pytest.raises(BundleError, match="sha256 differs"):
        Bundle.load(folder)
    for options in ({"skip_larger_than": 10}, {"verify": False}):
        assert Bundle.load(folder, **options).precision == "int4"


def changed(place: str, value: Any) -> dict[str, Any]:
    """The description with one field, by its dotted place, set to a value or (None) left out."""
    fields: dict[str, Any] = json.loads(json.dumps(description()))
    *parents, name = place.split(".")
    part = fields
    for parent in parents:
        part = part[parent]
    if value is None:
        del part[name]
    else:
        part[name] = value
    return fields


NAN = float("nan")
RANGES = [{"x": [[1], [2], [8]]}]
PACKED = {
    "files": ["decoder"],
    "modules": {"blocks": "model.layers", "text_root": "model", "vision_root": "visual"},
    "products": {},
}
TRT: dict[str, Any] = {"profile": "10.3", "in_place": True, "profiles": {"vision": RANGES, "decoder": RANGES}}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", [], r"format must be a text, got \[\]"),
        ("precision", "int5", "precision must be one of fp32"),
        ("family", None, "family is missing"),
        ("boxes", None, "a box format has the fields"),
        ("boxes.frame", "resizd", "box frame 'resizd' is unknown"),
        ("image.patch_size", None, "image.patch_size is missing"),
        ("image.mean", [NAN] * 3, "NaN is no number of JSON"),
        ("image.mean", [1e308] * 3, "image.mean must be three numbers"),
        ("image.std", [NAN] * 3, "NaN is no number of JSON"),
        ("image.std", [1e-320] * 3, "image.std must be three numbers"),
        ("image.rescale", 0, "image.rescale must be a number"),
        ("image.rescale", NAN, "NaN is no number of JSON"),
        ("image.resample", 99, "image.resample 99 is no filter"),
        ("image.merge_size", 10**6, "limits.max_image_tokens is 256"),
        ("image.merge_size", 1, "limits.max_image_tokens is 256"),
        ("image.max_pixels", 10**30, "image.max_pixels must be a positive whole number"),
        ("image.max_pixels", 10**9, "limits.max_image_tokens is 256"),
        ("image", 5, "image.rule must be one of"),
        ("chat.suffix", None, "chat.suffix is missing"),
        ("chat.prefix", "", "chat.prefix is empty"),
        ("chat.before_image", 5, "chat.before_image must be a text, got 5"),
        ("chat.colour", "red", "chat.colour is unknown"),
        ("ground_prompt", "Find it!", r"ground_prompt has no \{phrase\}"),
        ("ground_prompt", 7, "ground_prompt must be a text"),
        ("tokens.eos", None, "tokens.eos is missing"),
        ("tokens.eos", [], "tokens.eos is empty"),
        ("tokens.eos", [2, "0"], "tokens.eos.1 must be a whole number, got '0'"),
        ("tokens.image", None, "tokens.image is missing"),
        ("tokens.image", 10**4000, "a whole number of 4001 digits"),
        ("limits.max_length", "1024", "limits.max_length must be a whole number, got '1024'"),
        ("limits.max_length", True, "limits.max_length must be a whole number"),
        ("limits.max_image_tokens", None, "limits.max_image_tokens is missing"),
        ("model.layers", 0, "model.layers must be from 1"),
        ("model", [], "model must be an object"),
        ("rope.theta", NAN, "NaN is no number of JSON"),
        ("rope.mrope_section", [12, 10], "rope does not fit heads of 64"),
        ("rope.interleaved", "yes", "rope.interleaved must be true or false"),
        ("accuracy_level", 9, "accuracy_level must be from 0 to 4"),
        ("packed", {"files": ["weights"]}, "packed.files names 'weights', which is not in files"),
        ("packed", PACKED | {"prefixes": [["model."]]}, "packed.prefixes.0 is no pair: .'model.'."),
        ("format", "trt", "trt is missing"),
        ("trt", TRT | {"in_place": 1}, "trt.in_place must be true or false, got 1"),
        ("trt", TRT | {"profile": 10.3}, "trt.profile must be a text, got 10.3"),
        ("trt", TRT | {"profiles": {"head": []}}, "trt.profiles names 'head', which is not in files"),
        ("trt", TRT | {"profiles": {"vision": RANGES}}, "trt.profiles.decoder is missing"),
        ("trt", TRT | {"profiles": {"vision": [{"x": [[1], [2]]}]}}, "profiles.vision.0.x must be three shapes"),
        ("trt", TRT | {"profiles": {"vision": [{"x": [[1], [0], [2]]}]}}, "vision.0.x.1.0 must be from 1 to"),
        ("trt", TRT | {"profiles": {"vision": [{"x": [[4], [2], [8]]}]}}, "must be smallest, usual and largest sizes"),
        ("files.embed", None, "files.embed is missing"),
        ("files.decoder", "../secret", "used but not listed"),
        ("files.decoder", "onnx/other.onnx", "used but not listed"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, place: str, value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.load(write(tmp_path / "b", changed(place, value)))
    # Numbers that JSON does not have are refused before any field is looked at.
    before = message == "NaN is no number of JSON" or message.startswith("a whole number of")
    field = "" if before else "result.bundle: "
    assert str(caught.value).startswith(f"{tmp_path / 'b' / 'manifest.json'}: {field}")


def test_a_family_that_nobody_knows_yet_is_no_obstacle(tmp_path: Path) -> None:
    fields = changed("family", "qwen9_vl")
    fields["boxes"] |= {"frame": "norm01", "decimals": 3, "refusals": ["Nope"]}
    bundle = Bundle.load(write(tmp_path / "b", fields))
    assert (bundle.family, bundle.box_format.frame, bundle.box_format.refusals) == ("qwen9_vl", "norm01", ("Nope",))


@pytest.mark.parametrize("schema", [None, 1, 3])
def test_bundles_of_another_schema_are_refused_with_the_way_out(tmp_path: Path, schema: int | None) -> None:
    with pytest.raises(BundleError, match=rf"a bundle of schema {schema or 1}, this version runs schema 2") as caught:
        Bundle.load(write(tmp_path / "b", changed("schema", schema)))
    assert "export the checkpoint again" in str(caught.value.hint)


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_the_manifest_does_not_list_is_refused(tmp_path: Path, verify: bool) -> None:
    folder = write(tmp_path / "b", description())
    for name in (".DS_Store", "engines/tensorrt-10.3-sm87/decoder.engine"):  # a file manager's, and a device's own
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    Bundle.load(folder, verify=verify)
    (folder / "onnx/decoder.onnx.data").write_text("weights")
    with pytest.raises(BundleError, match=r"onnx/decoder\.onnx\.data: not listed in manifest\.json"):
        Bundle.load(folder, verify=verify)


@pytest.mark.parametrize("result", [5, None, [], {"bundle": 5}])
def test_a_result_that_is_no_object(tmp_path: Path, result: Any) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "stage": "export", "result": result, "files": {}}))
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.load(tmp_path)


def test_other_stage_folders_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 1, "stage": "merge", "result": {}, "files": {}}')
    with pytest.raises(BundleError, match="a 'merge' folder, not a bundle"):
        Bundle.load(tmp_path)
