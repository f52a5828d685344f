"""House rules that no linter knows: typed packages, nothing left for later, documents that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from edgetune.cli import VERBS

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(
    r"(?<![\w/.-])((?:edge|runtime|benchmarks|tests|examples|docs|\.ci|train/edgetune_train|data/edgetune_data"
    r"|calibrate/edgetune_calibrate)/[\w./-]*[\w/])"
)
LATER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def tracked(*patterns: str) -> list[Path]:
    """Return the files under version control that match; all of them in an unpacked source archive."""
    done = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_is_left_for_later() -> None:
    sources = [path for path in tracked("*.py", "*.md", "*.toml") if path != Path(__file__)]
    assert [str(path) for path in sources if LATER.search(path.read_text(encoding="utf-8"))] == []


def test_every_package_is_typed() -> None:
    packages = {path.parent for path in tracked("*/*/__init__.py") if path.parent.name.startswith("edgetune")}
    assert packages
    assert [str(folder) for folder in packages if not (folder / "py.typed").is_file()] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_page(verb: str) -> None:
    text = (ROOT / "docs" / f"{verb}.md").read_text(encoding="utf-8")
    assert f"edgetune {verb}" in text


def test_links_between_documents_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in tracked("*.md")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_paths_that_documents_name_are_there() -> None:
    named = [(page, path) for page in tracked("*.md") for path in NAMED.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 100
    missing = [f"{page.name}: {p}" for page, p in named if not any((base / p).exists() for base in (ROOT, page.parent))]
    assert missing == []
