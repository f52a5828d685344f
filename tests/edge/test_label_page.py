"""docs/label.md runs as printed, with a shorter training, and says what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from edgetune_runtime.manifest import read_manifest
from processes import run_as_printed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "label.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(bash|python|)\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+ boxes")


def test_the_page_runs_as_printed(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    said = ""
    printed = []
    for language, code in BLOCK.findall(PAGE):
        if language == "bash":
            said += run_as_printed(["bash", "-euo", "pipefail", "-c", code], tmp_path)
        elif language == "python":
            run_as_printed(["python", "-c", code.replace("epochs = 10", "epochs = 1")], tmp_path)
        else:
            printed += code.splitlines()
    assert len(printed) == 3
    for line in printed:  # how many boxes a model finds depends on its machine's rounding, and here on the training
        assert NUMBER.sub("# boxes", line) in NUMBER.sub("# boxes", said), line
    own = tmp_path / "runs" / "own"
    first = (own / "round1" / "pictures.txt").read_text().split()
    rest = (own / "round2" / "proposals" / "pictures.txt").read_text().split()
    assert (len(first), len(rest), set(first) & set(rest)) == (10, 30, set())
    records = [json.loads(line) for line in (own / "round2" / "corrected" / "data.jsonl").read_text().splitlines()]
    assert len(records) == 30
    for name in ("format", "precision", "vision_precision"):
        settings = [read_manifest(folder)["settings"][name] for folder in (own / "base", own / "round2" / "bundle")]
        assert settings[0] == settings[1]
