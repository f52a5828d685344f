"""Shards divide a set by picture: nothing is lost, nothing twice, and a picture's records stay together."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_runtime.errors import InputError
from edgetune_runtime.records import Shard, shard

RECORDS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers()), min_size=1)


@given(RECORDS, st.integers(1, 8))
def test_shards_are_a_balanced_division_by_picture(records: list[tuple[str, int]], count: int) -> None:
    pictures = {picture for picture, _ in records}
    if len(pictures) < count:
        with pytest.raises(InputError, match=f"only {len(pictures)} picture"):
            Shard(1, count).take(records, by=lambda record: record[0])
        return
    parts = [Shard(index, count).take(records, by=lambda record: record[0]) for index in range(1, count + 1)]
    assert sorted(record for part in parts for record in part) == sorted(records)
    held = [{picture for picture, _ in part} for part in parts]
    assert sum(map(len, held)) == len(pictures), "a picture is in two shards"
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for part in parts:  # the order is that of the records
        remaining = iter(records)
        assert all(record in remaining for record in part)


def test_every_nth_picture_in_order_of_first_appearance() -> None:
    asked = ["d1", "a1", "d2", "c1", "b1", "a2", "c2"]
    taken = [Shard(index, 3).take(asked, by=lambda name: name[0]) for index in (1, 2, 3)]
    assert taken == [["d1", "d2", "b1"], ["a1", "a2"], ["c1", "c2"]]


def test_a_shard_is_written_as_it_is_read() -> None:
    assert Shard.parse("2/5") == Shard(2, 5)
    assert str(Shard(2, 5)) == "2/5"
    assert Shard.parse("1/1").take(["a", "b", "a"]) == ["a", "b", "a"]


@pytest.mark.parametrize(
    "text", ["", "2", "2/", "/5", "2/5/7", "-1/5", "2 / 5", "a/b", "2/5\n", "²/5", "1.0/5", "1/1e3"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a shard") as caught:
        Shard.parse(text)
    assert caught.value.hint == "write I/N, as in 2/5 for the second of five"


@pytest.mark.parametrize(("text", "hint"), [("0/5", "1/5 to 5/5"), ("6/5", "1/5 to 5/5"), ("0/0", None)])
def test_shards_are_counted_from_one(text: str, hint: str | None) -> None:
    with pytest.raises(InputError, match=f"shard {text}: there is no shard") as caught:
        Shard.parse(text)
    assert caught.value.hint == (hint and f"shards are counted from 1: {hint}")


def test_the_examples_hold() -> None:
    assert doctest.testmod(shard).failed == 0
