"""Packages of other people, installed for a test as pip leaves them: modules and metadata in one folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def write_package(
    site: Path,
    points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    *,
    name: str = "shop",
    version: str = "1.0",
) -> Path:
    """Write a package into a folder of packages and return the folder.

    Args:
        site: the folder; made if it is missing.
        points: entry-point group -> name -> "module:object".
        modules: path below the folder, such as "shop/data.py" -> its text.
        name: of the package.
        version: of the package.
    """
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sections = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in named.items())
        for group, named in points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(sections))
    for path, text in (modules or {}).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    return site


def search(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its children find the packages of a folder until the test ends."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    for path in site.rglob("*.py"):  # a test before may have imported another package's module of this name
        parts = path.relative_to(site).with_suffix("").parts
        for length in range(1, len(parts) + 1):
            monkeypatch.delitem(sys.modules, ".".join(parts[:length]), raising=False)
