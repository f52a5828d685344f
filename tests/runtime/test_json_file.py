"""JSON from outside: what Python's decoder would take, and what it stumbles over, is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_runtime.errors import EdgetuneError, InputError, excerpt
from edgetune_runtime.json_file import decode_json, read_json, read_json_value

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**39), 10**39) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_it_reads_what_the_standard_library_reads(value: Any, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    assert decode_json(text) == decode_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^not valid JSON: .* at column 2$"),
        ('{"a": 1,\n "b": }', r"^not valid JSON: .* at line 2 column \d+$"),
        (b'"\xff"', "^not UTF-8 text: invalid start byte at byte 1$"),
        ("NaN", "^not valid JSON: NaN is no number of JSON$"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is too large"),
        ("9" * 400, r"a whole number of 400 digits \(999999999999…\) is too large"),
        ("-" + "9" * 5000, "a whole number of 5000 digits"),
        ("[" * 102 + "]" * 102, "nested too deeply, over 100 levels"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (r'"\ud800"', r"'\\ud800' is half of a surrogate pair"),
        (r'{"\uDFFF": 1}', "half of a surrogate pair"),
        ('{"a": 1, "b": 2, "a": 3}', "an object has the key 'a' twice"),
    ],
)
def test_what_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decode_json(text)
    with pytest.raises(InputError, match=r"^there:7: "):
        decode_json(text, "there:7")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{'a': 1}", "double quotes"),
        ('{"a": 1,}', "leave out the comma"),
        ('{"a": [1, 2, ]}', "leave out the comma"),
        ('{"a": 1}\r{"a": 2}\r', "a line feed"),
        ("{\n", "one whole object a line"),
        ('{"a": 1}'.encode("utf-16"), "as UTF-8"),
        ('{"a": "\u00e0"}'.encode("latin-1"), "as UTF-8"),
    ],
)
def test_common_mistakes_come_with_the_way_to_mend_them(text: str | bytes, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_json(text, "there:1")
    assert hint in str(caught.value.hint)


def test_what_is_close_to_it_is_read() -> None:
    assert decode_json("[" * 100 + "]" * 100) == json.loads("[" * 100 + "]" * 100)
    assert decode_json("[" + "[]," * 500 + "[]]") == [[]] * 501
    assert decode_json(str(2**128 - 1)) == 2**128 - 1
    assert decode_json(r'"\ud83d\ude00 \\ud800"') == "\U0001f600 \\ud800"
    assert decode_json("[NaN, 1e999]", finite=False)[1] == float("inf")


def test_a_file_is_named_and_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        read_json(path)
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == read_json_value(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"config\.json: must hold a JSON object"):
        read_json(path)


@pytest.mark.parametrize(
    "value",
    ["A" * 20_000, list(range(10**6)), {"k" * 5000: 1}, 10**5000, [[[[[[1] * 50] * 50] * 50] * 50] * 50], b"a" * 9999],
    ids=["text", "list", "key", "number", "nested", "bytes"],
)  # fmt: skip
def test_an_excerpt_is_short_whatever_the_value(value: object) -> None:
    assert len(excerpt(value)) <= 200


@given(st.text(max_size=20) | st.lists(st.integers(-1000, 1000), max_size=8) | st.none() | st.floats())
def test_an_excerpt_of_a_small_value_is_its_repr(value: object) -> None:
    assert excerpt(value) == repr(value)


def test_a_message_keeps_its_ends() -> None:
    told = str(EdgetuneError("data.jsonl:1: " + "A" * 100_000 + " is no box"))
    assert told.startswith("data.jsonl:1: A") and told.endswith("A is no box") and len(told) <= 2000
