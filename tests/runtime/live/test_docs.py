"""What the documentation shows runs as shown."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from edgetune_runtime.live.capture import Capture, pause
from edgetune_runtime.live.command import build_parser
from edgetune_runtime.live.events import Events
from edgetune_runtime.live.flow import Flow
from edgetune_runtime.live.sources import SourceError, source_of, taken_at
from edgetune_runtime.live.watch import Watcher
from live import plain

PAGE = Path(__file__).resolve().parents[3] / "docs" / "watch.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(qwen3_vl_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle, a picture, and three frames."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "onnx-int4").symlink_to(qwen3_vl_bundle)
    (tmp_path / "frames").mkdir()
    for number in range(3):
        plain(number).resize((96, 64)).save(tmp_path / "frames" / f"{number}.png")
    Image.effect_noise((120, 90), 80).convert("RGB").resize((480, 360)).resize((120, 90)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shown", [Capture, Events, Flow, SourceError, Watcher, pause, source_of, taken_at])
def test_examples_in_docstrings(here: Path, shown: object) -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    name = getattr(shown, "__name__", "")
    (test,) = finder.find(shown, name, globs={name: shown})
    assert test.examples and runner.run(test).failed == 0


def test_the_pages_python_watches_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code, str(PAGE), "exec"), {})
    assert "frames=3" in capsys.readouterr().out


def test_the_pages_commands_are_commands() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    watched = [shlex.split(line)[2:] for line in lines if line.startswith("edgetune-run watch ")]
    assert len(watched) == len([line for line in lines if "pip install" not in line]) == 3
    for words in watched:
        assert build_parser().parse_args(words).phrases
    told = PAGE.read_text(encoding="utf-8").partition("## What was measured")[0]
    options = set(re.findall(r"(--[a-z][a-z-]+)", told))
    assert options <= {option for action in build_parser()._actions for option in action.option_strings}
