"""A format of another package is found by its entry point; what it gets wrong is told in a line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.converting import convert, lines, pictures, write_json
from edgetune_data import formats
from edgetune_data.read import load
from edgetune_runtime.errors import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data_convert.md"
SHOP = [{"photo": "desk.png", "what": "cup", "where": [1, 2, 30, 40]}]
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with the format `shop`, as pip leaves one."""

    def install(code: str) -> None:
        site = tmp_path / "site"
        (site / "shop-1.0.dist-info").mkdir(parents=True)
        (site / "shop-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
        entry = "[edgetune.formats]\nshop = shop_format:FORMAT\n"
        (site / "shop-1.0.dist-info" / "entry_points.txt").write_text(entry)
        (site / "shop_format.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "shop_format", raising=False)
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
    assert result.stderr.splitlines()[0].endswith("llava, swift, shop")
    assert result.stderr.splitlines()[1] == "hint: did you mean 'shop'?"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no licence')", "cannot be loaded: no licence"),
        ("FORMAT = 3", "is no edgetune_data.formats.base.Format"),
        (
            "from edgetune_data.formats import coco\nFORMAT = coco.FORMAT",
            "has the name of another one",
        ),
    ],
)
def test_a_package_that_is_wrong_is_told(tmp_path: Path, install: Install, code: str, message: str) -> None:
    install(code)
    result = convert(write_json(tmp_path / "list.json", SHOP), tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr and "(shop_format:FORMAT)" in result.stderr


def test_a_built_in_format_is_found_without_asking_packages(tmp_path: Path, install: Install) -> None:
    pictures(tmp_path)
    install("raise RuntimeError('asked')")
    record = {"image": "desk.png", "problem": "cup", "solution": [1, 2, 30, 40]}
    assert convert(write_json(tmp_path / "list.json", [record]), tmp_path / "out").exit_code == 0
