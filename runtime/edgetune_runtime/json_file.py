"""Reading the JSON files that models and stages are configured by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object")
    return value
