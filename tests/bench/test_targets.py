"""Telling bundles from checkpoints, and giving rows names of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune_bench.targets import identify
from edgetune_runtime.bench.targets import at_bounds, name_apart, parse, with_baseline
from edgetune_runtime.errors import InputError


def folder(path: Path, *, stage: str | None = None, config: bool = False, adapter: bool = False) -> Path:
    path.mkdir(parents=True)
    if stage:
        (path / "manifest.json").write_text(json.dumps({"schema": 1, "stage": stage, "files": {}}))
    if config:
        (path / "config.json").write_text("{}")
    if adapter:
        (path / "adapter_config.json").write_text("{}")
    return path


def test_a_bundle_may_hold_the_checkpoint_config_too(tmp_path: Path) -> None:
    assert identify(folder(tmp_path / "int4", stage="export", config=True)).kind == "bundle"


def test_a_merged_checkpoint_and_a_downloaded_one_are_checkpoints(tmp_path: Path) -> None:
    assert identify(folder(tmp_path / "merged", stage="merge", config=True)).kind == "checkpoint"
    assert identify(folder(tmp_path / "hub", config=True)).kind == "checkpoint"


def test_a_damaged_manifest_is_left_to_the_worker(tmp_path: Path) -> None:
    path = folder(tmp_path / "int4", config=True)
    (path / "manifest.json").write_text('{"schema": 1, "sta')
    assert identify(path).kind == "bundle"


@pytest.mark.parametrize("stage", [None, "train", "bench"])
def test_other_folders_are_refused(tmp_path: Path, stage: str | None) -> None:
    with pytest.raises(InputError, match="neither a bundle"):
        identify(folder(tmp_path / "x", stage=stage))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        identify(tmp_path / "nowhere")


def test_adapters_are_checked_and_refused_on_bundles(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", config=True)
    adapter = folder(tmp_path / "adapter", adapter=True)
    assert str(adapter) in identify(base, adapter=adapter).command()
    with pytest.raises(InputError, match="no adapter_config"):
        identify(base, adapter=base)
    with pytest.raises(InputError, match="takes no --adapter"):
        identify(folder(tmp_path / "int4", stage="export"), adapter=adapter)


def test_rows_are_named_by_as_few_folders_as_tell_them_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "onnx" / "int4", tmp_path / "b" / "onnx" / "int4", tmp_path / "b" / "onnx" / "fp32"]
    named = name_apart([identify(folder(path, config=True)) for path in paths])
    assert [target.name for target in named] == ["a/onnx/int4", "b/onnx/int4", "fp32"]


def test_an_adapter_is_part_of_the_name(tmp_path: Path) -> None:
    base, adapter = folder(tmp_path / "base", config=True), folder(tmp_path / "lora", adapter=True)
    named = name_apart([identify(base), identify(base, adapter=adapter)])
    assert [target.name for target in named] == ["base", "base+lora"]


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "int4", config=True)
    with pytest.raises(InputError, match="named twice"):
        name_apart([identify(path), identify(tmp_path / "." / "int4")])


def test_a_name_given_by_the_user_stays(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a" / "model", config=True), folder(tmp_path / "b" / "model", config=True)
    named = name_apart([parse(f"base={first}", identify), parse(str(second), identify)])
    assert [target.name for target in named] == ["base", "model"]
    assert named[0].path == first
    with pytest.raises(InputError, match="two rows would be called 'x'"):
        name_apart([parse(f"x={first}", identify), parse(f"x={second}", identify)])


def test_an_equals_sign_in_a_folder_name_is_no_row_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "lr=1e-4", config=True)
    assert parse(str(path), identify).path == path


def bundle(path: Path, **fields: object) -> Path:
    path.mkdir(parents=True)
    manifest = {
        "schema": 1,
        "stage": "export",
        "files": {},
        "settings": {"block_size": 32},
        "result": {"bundle": fields},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_bundles_of_one_folder_name_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    gptq: dict[str, object] = {"calibration": {"method": "gptq", "bits": 4, "group_size": 128}}
    other: dict[str, object] = {"calibration": {"method": "gptq", "group_size": 32, "symmetric": True}}
    paths = [
        bundle(tmp_path / "a" / "onnx", format="onnx", precision="int4", **gptq),
        bundle(tmp_path / "b" / "onnx", format="onnx", precision="int4", calibration=None),
        bundle(tmp_path / "c" / "onnx", format="onnx", precision="fp16"),
        bundle(tmp_path / "c" / "gptq", format="gptq", precision="int4", **gptq),
        bundle(tmp_path / "d" / "gptq", format="gptq", precision="int4", **other),
    ]
    names = [target.name for target in name_apart([identify(path) for path in paths])]
    assert names == ["onnx-int4-gptq-g128", "onnx-int4-rtn-g32", "onnx-fp16", "gptq-int4-g128", "gptq-int4-g32-sym"]


def test_bundles_that_say_the_same_of_themselves_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [bundle(tmp_path / name / "onnx", format="onnx", precision="fp16") for name in ("a", "b")]
    assert [t.name for t in name_apart([identify(path) for path in paths])] == ["a/onnx", "b/onnx"]


def test_a_name_that_tells_apart_is_kept_short(tmp_path: Path) -> None:
    paths = [bundle(tmp_path / name, format="onnx", precision=name) for name in ("fp16", "int4")]
    assert [t.name for t in name_apart([identify(path) for path in paths])] == ["fp16", "int4"]


def test_an_engine_is_passed_to_bundles_only(tmp_path: Path) -> None:
    path, checkpoint = bundle(tmp_path / "x", format="onnx", precision="fp16"), folder(tmp_path / "hub", config=True)
    assert identify(path, engine="warp").command()[-2:] == ["--engine", "warp"]
    assert identify(checkpoint, engine="warp") == identify(checkpoint)


def test_every_target_is_a_row_at_each_bound_and_its_name_says_so(tmp_path: Path) -> None:
    paths = [bundle(tmp_path / name / "onnx", format="onnx", precision=name) for name in ("fp16", "int8")]
    checkpoint = folder(tmp_path / "hub", config=True)
    targets = [*map(identify, paths), parse(f"torch={checkpoint}", identify)]
    rows, baseline = with_baseline(at_bounds(targets, [200_000, 262_144]), parse(f"whole={checkpoint}", identify))
    assert [row.name for row in rows] == [
        "whole",  # the baseline has no bound
        *("onnx-fp16@200k", "onnx-fp16@262144", "onnx-int8@200k", "onnx-int8@262144", "torch@200k", "torch@262144"),
    ]
    assert baseline == "whole"
    assert [row.command()[-2:] for row in rows[1:3]] == [["--max-pixels", "200000"], ["--max-pixels", "262144"]]
    assert "--max-pixels" not in rows[0].command()
    assert [row.max_pixels for row in rows] == [None, *[200_000, 262_144] * 3]


def test_without_bounds_targets_stay_as_they_are(tmp_path: Path) -> None:
    target = identify(folder(tmp_path / "int4", config=True))
    assert at_bounds([target], []) == [target]
