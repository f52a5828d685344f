"""What the documentation shows runs as shown."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

from served import Asked, Server

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serve.md"


def test_examples_in_docstrings(qwen3_vl_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetune_runtime.serve.app import build_app
    from edgetune_runtime.serve.label_studio import Config
    from edgetune_runtime.serve.label_studio_files import LabelStudioFiles
    from edgetune_runtime.serve.model import Model
    from edgetune_runtime.serve.refusal import Refusal
    from edgetune_runtime.serve.x_anylabeling import phrases

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "onnx-int4").symlink_to(qwen3_vl_bundle)
    monkeypatch.chdir(tmp_path)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for shown in (build_app, Model, Refusal, Config, LabelStudioFiles, phrases):
        (test,) = finder.find(shown, shown.__name__, globs={})
        assert test.examples and runner.run(test).failed == 0, shown.__name__


def test_the_config_of_the_labelling_page_asks_what_the_page_says(server: Server) -> None:
    from edgetune_runtime.serve.label_studio import Config

    page = PAGE.with_name("labelling_tools.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```xml\n(.*?)```", page, re.DOTALL)
    assert server.connect().ask("POST", "/setup", {"schema": text}).status == 200
    (listed,) = re.findall(r"Here these are (.*?)\.", page, re.DOTALL)
    assert [each.phrase for each in Config(text).wanted()] == re.findall("`(.*?)`", listed)
    assert [each.label for each in Config(text).wanted()] == ["cup", "jar", "clk", "clk"]


def test_the_pages_python_asks_the_server(
    server: Server,
    asked: list[Asked],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openai")
    (tmp_path / "photo.jpg").write_bytes(asked[0].picture)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = "".join(blocks).replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace('model="cups"', 'model="tiny"')
    scope: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), scope)
    assert capsys.readouterr().out.strip() == scope["answer"].choices[0].message.content.strip() != ""
    told = scope["client"].chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": scope["content"]}],
        response_format=scope["boxes"],
    )
    assert told.choices[0].message.content.startswith('{"detections": [')
