"""Answers of an evaluation in the files of other evaluation suites, which then score them by their own rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from edgetune_bench.exports import coco, evalscope, vlmevalkit
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.errors import InputError

FORMATS: Mapping[str, Callable[[str, Answers, Path], list[str]]] = {
    "coco": coco.write,
    "evalscope": evalscope.write,
    "vlmevalkit": vlmevalkit.write,
}
"""Each writes the answers of every row into an empty folder and returns what it had to leave out, a line each."""


def write(answers: Answers, folder: Path, form: str, *, name: str) -> list[str]:
    """Write the answers of every row that ran in one of FORMATS, and return what was left out.

    Args:
        answers: scored rows by the rows' names.
        folder: an empty folder.
        form: a key of FORMATS.
        name: what the data set is called there: letters, digits, "-" and "_".

    Raises:
        InputError: no row ran, the name has other signs, or the format cannot hold the answers.
        MissingDependency: a library that writes the format is not installed.
    """
    if not answers:
        raise InputError("no row has answers to export")
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"--name {name!r}: use letters, digits, - and _ only")
    return FORMATS[form](name, answers, folder)
