"""docs/python.md runs as printed: each block in turn, as in a notebook, with the output that the page shows."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgetune_runtime.codec.grounding import Detection
from edgetune_runtime.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```\n\n```text( measured)?\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == PAGE.count("```python") > 0
    names: dict[str, Any] = {}
    for code, measured, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/python.md", "exec"), names)
        said = printed.getvalue()
        # Times, and the last digit of a box, are another machine's; what is said about them is not.
        assert (NUMBER.sub("#", said) == NUMBER.sub("#", shown)) if measured else said == shown, code

    # What the page shows is true, too: the boxes are where the records say, and the picture has them.
    [found], truth = names["answer"].detections, names["record"]["bbox"]
    assert isinstance(found, Detection)
    [truth] = truth if isinstance(truth[0], list) else [truth]
    assert found.box == pytest.approx(truth, abs=10)
    with Image.open("runs/notebook/answer.png") as drawn:
        assert drawn.size == names["picture"].size and drawn.tobytes() != names["picture"].convert("RGB").tobytes()
    assert read_manifest(Path("runs/notebook/bench"))["result"] == {"rows": 1, "failed": []}
