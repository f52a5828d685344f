"""Helpers of the tests of `data convert`: pictures, files and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from PIL import Image

from edgetune.cli import cli

GOLDEN = Path(__file__).parent / "golden"
DESK, SHELF = (160, 120), (100, 80)


def convert(path: Path, output: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["data", "convert", str(path), "--output", str(output), *options])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pictures(folder: Path) -> None:
    """Write desk.png (160x120) and shelf.png (100x80)."""
    Image.new("RGB", DESK, "red").save(folder / "desk.png")
    Image.new("RGB", SHELF, "blue").save(folder / "shelf.png")


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path
