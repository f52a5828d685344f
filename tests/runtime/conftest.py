"""Runs the runtime's tests also where nothing but its wheel, numpy, pytest and hypothesis are installed.

Modules that compare with other libraries are left out there, and listed at the start of the run.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent


@cache
def lacks(path: Path) -> str | None:
    """Return the first module that a file imports when it is loaded, itself or through a helper, and that is absent."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for root in (name.partition(".")[0] for name in names):
            helper = _TESTS / f"{root}.py"
            if helper.is_file():
                if absent := lacks(helper):
                    return absent
            elif find_spec(root) is None:
                return root
    return None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot be imported here."""
    left_out = collection_path.name.startswith("test_") and collection_path.suffix == ".py" and lacks(collection_path)
    return True if left_out else None


def pytest_report_header() -> list[str]:
    """Say what is left out, and why."""
    found = {path: lacks(path) for path in sorted(Path(__file__).parent.rglob("test_*.py"))}
    return [f"left out: {path.relative_to(_TESTS)} (needs {name})" for path, name in found.items() if name]
