"""Telling bundles from checkpoints, and giving rows names of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune_bench.targets import identify
from edgetune_runtime.bench.targets import name_apart, parse
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
