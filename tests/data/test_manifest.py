"""`dataset.json` lists every file and picture, notices changes, and stages that read the data record it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from data.converting import convert, pictures, write_json, write_lines
from edgetune.cli import cli
from edgetune_data.copies import canonical_file
from edgetune_data.manifest import beside, changes, read
from edgetune_data.read import load, stage_inputs
from edgetune_runtime.errors import InputError
from edgetune_runtime.records import read_entries


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    pictures(tmp_path)
    asked = [{"query": "<image>What?", "response": "Red.", "image": name} for name in ("desk.png", "shelf.png")]
    assert convert(write_json(tmp_path / "input.json", asked), tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def test_every_file_is_listed_with_its_hash(converted: Path) -> None:
    manifest = read(converted / "dataset.json")
    listed = {**manifest["files"], **manifest["images"], **manifest["made_from"]}
    assert set(listed) == {"data.jsonl", "../desk.png", "../shelf.png", "../input.json"}
    for name, entry in listed.items():
        assert entry == {"sha256": sha256(converted / name), "size": (converted / name).stat().st_size}
    hashes = sorted(sha256(converted.parent / name) for name in ("desk.png", "shelf.png"))
    assert manifest["images_sha256"] == hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    assert json.loads((converted / "manifest.json").read_text())["result"]["images_sha256"] == manifest["images_sha256"]


def test_a_changed_picture_is_noticed_and_makes_it_anew(converted: Path) -> None:
    assert changes(converted / "dataset.json") == []
    (converted.parent / "desk.png").write_bytes((converted.parent / "shelf.png").read_bytes())
    (converted / "data.jsonl").unlink()
    assert changes(converted / "dataset.json") == [
        f"{converted / 'data.jsonl'}: missing",
        f"{converted / '../desk.png'}: changed",
    ]
    again = convert(converted.parent / "input.json", converted)
    assert again.stdout.endswith("2 records (2 vqa) of 2 pictures from swift, 0 rejected\n")
    assert changes(converted / "dataset.json") == []


def test_a_stage_depends_on_the_data_and_its_manifest(converted: Path) -> None:
    data, listed = converted / "data.jsonl", converted / "dataset.json"
    assert stage_inputs("data", data) == {"data": data, "data manifest": listed}
    assert stage_inputs("data", converted) == {"data": data, "data manifest": listed}
    source = converted.parent / "input.json"
    assert stage_inputs("data", source) == {"data": source}
    other = write_lines(converted / "other.jsonl", {"image": "../desk.png", "text": "cup", "bbox": []})
    assert beside(other) is None


def test_both_files_of_a_pair_count(tmp_path: Path) -> None:
    refs = write_json(tmp_path / "refs(x).json", [])
    instances = write_json(tmp_path / "instances.json", {})
    assert stage_inputs("data", refs) == {"data": refs, "data 2": instances}


def test_a_worker_gets_a_file_with_the_same_records(converted: Path) -> None:
    data = converted / "data.jsonl"
    assert canonical_file(data) == data
    source = converted.parent / "input.json"
    made = canonical_file(source)
    assert made != source
    assert [(entry.images, entry.source) for entry in read_entries(made)] == [
        (tuple(image.absolute() for image in entry.images), entry.source) for entry in load(source)
    ]


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a data set's manifest of version 1"):
        read(write_json(tmp_path / "dataset.json", {"version": 2}))
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.json")


def test_a_verb_ends_with_its_output_and_the_verb_that_comes_next(converted: Path, tmp_path: Path) -> None:
    done = convert(converted.parent / "input.json", tmp_path / "new")
    data = tmp_path / "new" / "data.jsonl"
    assert done.stdout.startswith(f"{data}: 2 records")
    assert done.stderr == f"next: edgetune data check {data}\n"
    assert f"{data}: 2 records, 2 pictures, 0 errors" in CliRunner().invoke(cli, done.stderr.split()[2:]).stdout


VERBS = {
    "stats": "data stats {data}",
    "stats of the folder": "data stats {folder}",
    "check": "data check {data}",
    "convert": "data convert {data} --output {out}",
    "crop": "data crop {data} --output {out}",
    "split": "data split {data} --output {out}",
    "train": "train --checkpoint {model} --data {data} --output {out} --dry-run",
    "val": "train --checkpoint {model} --data {whole} --val {data} --output {out} --dry-run",
    "grpo": "grpo --checkpoint {model} --data {data} --output {out} --dry-run",
    "calibrate": "calibrate --checkpoint {model} --data {data} --output {out} --dry-run",
    "eval": "eval {model} --data {data} --dry-run",
    "bench": "bench {model} --data {data} --output {out} --dry-run",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_data_file_that_was_cut_afterwards_is_refused(
    converted: Path, qwen3_vl: Path, tmp_path: Path, verb: str
) -> None:
    data = converted / "data.jsonl"
    whole = write_lines(tmp_path / "whole.jsonl", {"image": "desk.png", "text": "cup", "bbox": [1, 2, 30, 40]})
    data.write_text(data.read_text().splitlines(keepends=True)[0])
    words = VERBS[verb].format(data=data, folder=converted, out=tmp_path / "new", model=qwen3_vl, whole=whole)
    done = CliRunner().invoke(cli, words.split())
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {data}: was changed after it was written"), done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", ["stats", "check", "convert", "train", "eval"])
def test_a_data_file_of_an_interrupted_conversion_is_refused(
    converted: Path, qwen3_vl: Path, tmp_path: Path, verb: str
) -> None:
    partial = tmp_path / ".out.partial"
    shutil.copytree(converted, partial, ignore=shutil.ignore_patterns("*.json"))
    words = VERBS[verb].format(data=partial / "data.jsonl", out=tmp_path / "new", model=qwen3_vl)
    done = CliRunner().invoke(cli, words.split())
    assert done.exit_code == 2, done.output
    assert f"{partial / 'data.jsonl'}: the data" in done.stderr
    assert "is not finished" in done.stderr
