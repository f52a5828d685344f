"""The examples in the documentation of the codec and the data files run as printed."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import edgetune_runtime
from edgetune_runtime.records import Record, read_entries

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", ["coordinates.md", "data.md", "data_check.md"])
def test_examples(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page != "coordinates.md":
        pytest.importorskip("edgetune_data")
    monkeypatch.chdir(tmp_path)
    failures, examples = doctest.testfile(str(DOCS / page), module_relative=False)
    assert examples > 0 and failures == 0


def test_examples_in_docstrings(qwen3_vl_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that the package exports has an example, and it runs as printed."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "onnx-int4").symlink_to(qwen3_vl_bundle)
    Image.new("RGB", (120, 90), "white").save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in set(edgetune_runtime.__all__) - {"__version__"}:
        (test,) = finder.find(getattr(edgetune_runtime, name), name, globs={})
        assert test.examples, f"{name} has no example"
        assert runner.run(test).failed == 0, name


def test_records_in_the_data_page_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (DOCS / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(blocks), encoding="utf-8")
    Image.new("RGB", (160, 160)).save(tmp_path / "desk.jpg")
    entries = read_entries(path)
    assert len(entries) == len(path.read_text().splitlines()) == 9
    assert all(json.loads(line) for line in path.read_text().splitlines())
    kinds = [entry.kind if isinstance(entry, Record) else "dialogue" for entry in entries]
    assert kinds == ["ground"] * 3 + ["vqa"] * 3 + ["ground", "dialogue", "vqa"]
