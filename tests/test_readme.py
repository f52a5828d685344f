"""The commands in the documents are commands that exist, and the README's own chain runs as printed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from PIL import Image

from edgetune.cli import VERBS, cli
from processes import run_as_printed

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RUN = re.compile(r"<!-- tests/test_readme.py runs this block( with --dry-run)?.*?-->\n```(\w+)\n(.*?)```", re.DOTALL)
BASH = re.compile(r"```(?:bash|sh|console)\n(.*?)```", re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `edgetune` command in a shell block, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["edgetune"]:
            yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_documented_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").touch()
    for block in BASH.findall(page.read_text(encoding="utf-8")):
        for verb, *arguments in commands(block):
            if verb.startswith("-"):
                continue
            assert verb in VERBS, f"{page.name}: edgetune {verb}"
            command = cli.get_command(click.Context(cli), verb)
            assert command is not None
            if "--help" not in arguments:
                command.make_context(verb, arguments)  # raises on an unknown option, a bad value or a missing one


def test_the_table_of_verbs_is_complete() -> None:
    assert re.findall(r"^\| \[`([\w-]+)`\]", README.read_text(encoding="utf-8"), re.MULTILINE) == list(VERBS)


def make_records(folder: Path, name: str, colours: list[str]) -> None:
    lines = []
    for index, colour in enumerate(colours):
        picture = Image.new("RGB", (192, 128), "black")
        left = 16 * (index % 9)
        box = (left, 16, left + 48, 80)
        picture.paste(colour, box)
        picture.save(folder / f"{name}{index}.png")
        lines.append(json.dumps({"image": f"{name}{index}.png", "text": f"the {colour} square", "bbox": box}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def workplace(tmp_path: Path, qwen3_vl: Path) -> Path:
    """A folder with what the README's chain starts from: a base checkpoint, records and a photograph."""
    (tmp_path / "base").symlink_to(qwen3_vl)
    (tmp_path / "data").mkdir()
    make_records(tmp_path / "data", "train", ["red", "green", "blue", "white"] * 6)
    make_records(tmp_path / "data", "test", ["yellow", "purple"])
    Image.new("RGB", (200, 150), "teal").save(tmp_path / "photo.jpg")
    return tmp_path


def test_the_chain_of_the_readme_runs_as_printed(workplace: Path) -> None:
    blocks = RUN.findall(README.read_text(encoding="utf-8"))
    assert [(language, bool(dry)) for dry, language, _ in blocks] == [
        ("bash", False),
        ("bash", True),
        ("python", False),
    ]
    runners = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for dry, language, code in blocks:
        run_as_printed([*runners[language], code.rstrip() + dry.removeprefix(" with")], workplace)
    assert json.loads((workplace / "runs/bench/manifest.json").read_text())["result"]["failed"] in (0, [], {})
    assert Image.open(workplace / "answer.png").size == (200, 150)
