"""The schema of results: the shipped file, the dataclasses and the jsonschema library agree on what is a result."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from answers import Row, ground, part, results, vqa
from edgetune_runtime.bench.results import Results, results_schema
from edgetune_runtime.errors import InputError
from edgetune_runtime.typed_json import decode, json_schema

WRONG: tuple[Any, ...] = (None, True, -1, 1.5, 10**400, "x", [], {}, [None], {"a": None})


@pytest.fixture(scope="module")
def value() -> dict[str, Any]:
    """Results of a shard, with all that is optional: a row of both kinds of records, its baseline, and a failed one."""
    rows: list[Row] = [ground(f"{i}", part(0.5 + i / 10), number=i) for i in range(3)] + [vqa("v", "red", ["red"], 9)]
    found, answers = results({"base": rows, "q": rows, "bad": "no engine"}, baseline="base")
    plain = found.to_dict()
    plain["rows"][1]["answers"] = [answer.to_dict() | {"number": 7} for answer in answers["q"]]
    plain["options"]["shard"] = {"index": 2, "count": 3}
    plain["data"] |= {"records_sha256": "ab" * 32, "whole": {"records": 9, "images_sha256": "cd" * 32}}
    plain["metrics"] = ["ap"]
    plain["shards"] = [{key: plain[key] for key in ("created", "command", "machine")}]
    return plain


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner):
        yield value, key
        yield from places(item)


def test_the_shipped_file_is_that_of_the_dataclasses() -> None:
    Draft202012Validator.check_schema(results_schema())
    title = results_schema()["title"]
    assert json_schema(Results, title) == results_schema(), "write json_schema(Results, title) to results.schema.json"


def test_written_results_are_valid_and_read_back_the_same(value: dict[str, Any]) -> None:
    Draft202012Validator(results_schema()).validate(value)
    assert decode(Results, json.loads(json.dumps(value))).to_dict() == value


def test_what_the_schema_refuses_is_refused_with_one_line(value: dict[str, Any]) -> None:
    """One value replaced or removed at a time, at every place."""
    validator = Draft202012Validator(results_schema())
    generator = random.Random(0)
    refused = 0
    for number in range(len(list(places(value)))):
        changed = copy.deepcopy(value)
        inner, key = list(places(changed))[number]
        if isinstance(inner, dict) and generator.random() < 0.3:
            del inner[key]
        else:
            inner[key] = generator.choice(WRONG)
        valid = validator.is_valid(changed)
        try:
            decode(Results, changed)
        except InputError as error:
            assert str(error) and "\n" not in str(error)
            refused += not valid
        else:
            assert valid, (key, inner)
    assert refused > 100


@pytest.mark.parametrize(
    ("place", "changed", "told"),
    [
        (("stages", "total"), {"p50": 3.0, "p95": 2.0, "p99": 4.0}, "stages.total: its p50 3 is above its p95 2"),
        (("stages", "vision"), {"p50": 1.0, "p95": 3.0, "p99": 2.0}, "stages.vision: its p95 3 is above its p99 2"),
        (("vqa", "anls_interval"), {"low": 0.9, "high": 0.1}, "vqa.anls_interval: its low 0.9 is above its high 0.1"),
        (("vqa", "bleu_interval"), {"low": 9.0, "high": 1.0}, "vqa.bleu_interval: its low 9 is above its high 1"),
    ],
)
def test_figures_in_the_wrong_order_are_refused_by_their_row(
    value: dict[str, Any], place: tuple[str, str], changed: dict[str, float], told: str
) -> None:
    wrong = copy.deepcopy(value)
    wrong["rows"][1][place[0]][place[1]] = {"value": 0.5, "records": 3, "images": 3} | changed
    with pytest.raises(InputError) as caught:
        decode(Results, wrong)
    assert str(caught.value) == f"rows['q'].{told}"
