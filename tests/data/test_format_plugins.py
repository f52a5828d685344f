"""A format of another package is found by its entry point; what it gets wrong is told in a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.converting import convert, lines, pictures, write_json
from edgetune_data import formats
from edgetune_data.read import load
from edgetune_runtime.errors import InputError
from packages import search, write_package

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data_convert.md"
SHOP = [{"photo": "desk.png", "what": "cup", "where": [1, 2, 30, 40]}]
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with the format `shop`, as pip leaves one."""

    def install(code: str) -> None:
        points = {"edgetune.formats": {"shop": "shop_format:FORMAT"}}
        search(write_package(tmp_path / "site", points, {"shop_format.py": code}), monkeypatch)
        formats.others.cache_clear()

    yield install
    formats.others.cache_clear()


def documented() -> str:
    [code] = re.findall(r"```python\n(from edgetune_data\.formats\.base import .*?)```", DOCS.read_text(), re.DOTALL)
    return str(code)


def test_the_documented_format_is_recognised_named_and_read(tmp_path: Path, install: Install) -> None:
    pictures(tmp_path)
    path = write_json(tmp_path / "list.json", SHOP)
    with pytest.raises(InputError, match="not recognised as any of csv, "):
        load(path)
    install(documented())
    # The file is as it was, but another package is there now: a process that starts asks it.
    path = write_json(tmp_path / "other.json", SHOP)
    for options in ((), ("--format", "shop", "--force")):
        result = convert(path, tmp_path / "out", *options)
        assert result.exit_code == 0, result.stderr
        assert lines(tmp_path / "out" / "data.jsonl") == [
            {"image": "../desk.png", "text": "cup", "bbox": [1, 2, 30, 40], "meta": {"source": "other.json#0"}}
        ]
    [record] = load(path)
    assert record.images == (tmp_path / "desk.png",)
    wrong = convert(path, tmp_path / "x", "--format", "shop", "--split", "train")
    assert wrong.stderr.startswith("error: --split means nothing for the format shop\nhint: it takes --image-root, ")


def test_a_format_that_is_not_there_is_named_with_a_near_one(tmp_path: Path, install: Install) -> None:
    install(documented())
    result = convert(write_json(tmp_path / "list.json", SHOP), tmp_path / "out", "--format", "shopp")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == ["error: unknown format 'shopp'", "hint: did you mean 'shop'?"]
    result = convert(tmp_path / "list.json", tmp_path / "out", "--format", "xx")
    assert result.stderr.splitlines()[1].endswith("llava, swift, shop")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence')", "cannot be loaded: RuntimeError: no licence"),
        ("from edgetune_data.formats import coco\nFORMAT = coco.FORMAT", "calls itself 'coco'"),
    ],
)
def test_a_package_that_is_wrong_is_told(tmp_path: Path, install: Install, code: str, message: str) -> None:
    install(code)
    result = convert(write_json(tmp_path / "list.json", SHOP), tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: the format 'shop' of shop 1.0 (shop_format:FORMAT) {message}\n")


def test_a_built_in_format_is_found_without_asking_packages(tmp_path: Path, install: Install) -> None:
    pictures(tmp_path)
    install("raise RuntimeError('asked')")
    record = {"image": "desk.png", "problem": "cup", "solution": [1, 2, 30, 40]}
    assert convert(write_json(tmp_path / "list.json", [record]), tmp_path / "out").exit_code == 0
