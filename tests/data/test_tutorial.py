"""The tutorial's commands run as printed, for one epoch and few answers, and say what the page says of the data."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from processes import run_as_printed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"```(bash|)\n(.*?)```", re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_the_commands_run_and_the_data_is_as_printed(workplace: Path) -> None:
    blocks = BLOCKS.findall(PAGE)
    commands = [code for language, code in blocks if language == "bash"]
    assert len(commands) == 7
    said = ""
    for code in commands:
        code = re.sub(r"--epochs \d+", "--epochs 1", code)
        code = re.sub(r"(edgetune eval \S+ --data \S+)", r"\1 --limit 3", code)
        # The check ends with 0 once its fixes leave no error, so every command has to.
        said += run_as_printed(["bash", "-euo", "pipefail", "-c", code], workplace)
    printed = [text for language, text in blocks if not language and "$ " not in text]
    for line in "".join(printed[:4]).splitlines():  # the table, the check, the split, the crops
        assert line == "…" or line in said, line
    assert (workplace / "runs" / "own" / "answer.png").is_file()
    assert (workplace / "runs" / "own" / "checked" / "sheet.html").is_file()


def test_converting_stops_where_the_page_says(workplace: Path) -> None:
    subprocess.run([sys.executable, "examples/own_pictures/make.py", "--output", "runs/own"], cwd=workplace, check=True)
    [block] = [text for language, text in BLOCKS.findall(PAGE) if text.startswith("$ ")]
    command, *answer = block.splitlines()
    words = [sys.executable, "-m", "edgetune", *command.split()[2:]]
    done = subprocess.run(words, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines() == answer
