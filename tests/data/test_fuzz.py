"""Whatever is wrong with a file, the reader says so in one line: no other exception ever leaves it."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.converting import GOLDEN, pictures
from edgetune_data.read import Item, Reading
from edgetune_runtime.errors import InputError

FILES = {
    "swift": "input.jsonl",
    "llava": "input.json",
    "roboflow": "input.jsonl",
    "coco": "input.json",
    "refcoco": "refs(unc).json",
    "labelstudio": "input.json",
    "vqa": "input.json",
    "edgetune": "input.jsonl",
    "vlm-r1": "input.json",
    "openai": "input.jsonl",
}
FOLDERS = {"vqa": "vqa_flat"}
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 500) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def replaced(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    if not path:
        return junk
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], junk)
    return changed


def problem_of(item: Item) -> InputError | None:
    try:
        item.record()
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize("name", FILES)
@given(draw=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_told_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, name: str, draw: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"fuzz-{name}-{os.getpid()}"
    if not folder.exists():
        shutil.copytree(GOLDEN / FOLDERS.get(name, name), folder)
        pictures(folder)
    path, source = folder / FILES[name], GOLDEN / FOLDERS.get(name, name) / FILES[name]
    several = path.suffix == ".jsonl"
    text = source.read_text(encoding="utf-8")
    value = [json.loads(line) for line in text.splitlines()] if several else json.loads(text)
    damaged = replaced(value, draw.draw(st.sampled_from(list(places(value)))), draw.draw(JUNK))
    lines = damaged if several and isinstance(damaged, list) else [damaged]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    for form in (name, "auto"):
        try:
            problems = [problem for item in Reading(path, form) if (problem := problem_of(item))]
        except InputError as error:
            problems = [error]
        assert all("\n" not in str(problem) for problem in problems)
