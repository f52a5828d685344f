"""Splits share no picture and nothing nearly the same, keep their ratios, and follow their seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.broken import Writer
from edgetune.cli import cli
from edgetune_data.read import Item
from edgetune_data.split import Group, divide
from edgetune_runtime.errors import InputError


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)], prog_name="edgetune")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(folder: Path) -> dict[str, set[str]]:
    """The phrase or question of each record, by split."""
    names = [name for name in ("train", "val", "test") if (folder / f"{name}.jsonl").exists()]
    return {
        name: {value.get("text") or value["question"] for value in lines(folder / f"{name}.jsonl")} for name in names
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 pictures, two records each; picture 2k+1 of the first twenty is picture 2k, saved smaller and worse."""
    writer = Writer(tmp_path / "in")
    writer.folder.mkdir()
    for index in range(60):
        name = f"{index}.jpg"
        if index < 20 and index % 2:
            Image.open(writer.folder / f"{index - 1}.jpg").resize((200, 150)).save(writer.folder / name, quality=40)
        else:
            Image.effect_noise((16, 12), 90).resize((320, 240), Image.Resampling.BICUBIC).save(writer.folder / name)
        writer.add({"image": name, "text": f"mug {index}", "bbox": [10, 10, 90, 90], "label": "mug"})
        if index % 3:
            writer.add({"image": name, "text": f"cactus {index}", "bbox": []})
        else:
            writer.add({"image": name, "question": f"How many in {index}?", "answer": "one"})
    return writer.write("data.jsonl")


def test_no_picture_nor_a_near_duplicate_is_on_two_sides(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("split", data, "--output", out, "--ratios", "0.6,0.2,0.2")
    assert done.exit_code == 0
    found = texts(out)
    assert sum(map(len, found.values())) == 120 == len(set().union(*found.values()))
    assert {name: len(some) for name, some in found.items()} == {"train": 72, "val": 24, "test": 24}
    for some in found.values():
        numbers = {int(text.rstrip("?").split()[-1]) for text in some}
        assert all((number ^ 1) in numbers for number in numbers if number < 20)
        assert all(f"mug {number}" in some for number in numbers)
    for name, others in {"train": ("val", "test"), "val": ("test",)}.items():
        against = [word for other in others for word in ("--against", str(out / f"{other}.jsonl"))]
        assert "leak" not in json.loads(run("check", out / f"{name}.jsonl", *against, "--json").stdout)["counts"]
    assert (out / lines(out / "train.jsonl")[0]["image"]).is_file()
    kinds = {name: Counter(text.split()[0] for text in some) for name, some in found.items()}
    assert kinds == {
        "train": {"mug": 36, "cactus": 24, "How": 12},
        "val": {"mug": 12, "cactus": 8, "How": 4},
        "test": {"mug": 12, "cactus": 8, "How": 4},
    }


def test_the_seed_decides_and_the_rest_does_not(data: Path, tmp_path: Path) -> None:
    splits = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("split", data, "--output", tmp_path / name, "--seed", str(seed))
        splits.append(texts(tmp_path / name))
    assert splits[0] == splits[1] != splits[2]


def test_crops_stay_with_their_original(data: Path, tmp_path: Path) -> None:
    run("crop", data, "--output", tmp_path / "crops", "--min-size", "40", "--margin", "0.1")
    run("split", tmp_path / "crops", "--output", tmp_path / "out", "--near", "0", "--ratios", "0.5,0.5")
    sides = [
        {Path(value.get("meta", {}).get("origin", value)["image"]).name for value in lines(tmp_path / "out" / name)}
        for name in ("train.jsonl", "val.jsonl")
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_meta_keeps_records_together(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for index in range(40):
        Image.effect_noise((16, 12), 90).resize((64, 48)).save(tmp_path / f"{index}.png")
        value = {"image": f"{index}.png", "question": f"What is {index}?", "answer": "it"}
        writer.add({**value, "meta": {"customer": index % 10}})
    run("split", writer.write("data.jsonl"), "--output", tmp_path / "out", "--group-by", "customer")
    sides = [{value["meta"]["customer"] for value in lines(file)} for file in (tmp_path / "out").glob("t*.jsonl")]
    assert len(sides) == 2 and not sides[0] & sides[1]
    groups = lines(tmp_path / "out" / "groups.jsonl")
    assert sorted(len(group["records"]) for group in groups) == [4] * 10


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=30, max_size=120),
    labels=st.integers(1, 5),
    ratios=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.3)]),
    seed=st.integers(0, 99),
)
def test_ratios_hold_for_all_records_and_for_every_label(
    sizes: list[int], labels: int, ratios: tuple[float, ...], seed: int
) -> None:
    parts = []
    for index, size in enumerate(sizes):
        entries = tuple(Item(Path("d"), f":{index}.{number}", {}, None) for number in range(size))
        parts.append(Group(entries, {f"label {index % labels}": size}))
    divided = divide(parts, ratios, seed)
    assert sorted(entry.source for side in divided for group in side for entry in group.entries) == sorted(
        entry.source for group in parts for entry in group.entries
    )
    total = sum(sizes)
    for ratio, side in zip(ratios, divided, strict=True):
        assert abs(sum(len(group.entries) for group in side) - ratio * total) <= 6
    for label in range(labels):
        all_of = sum(sizes[label::labels])
        if len(sizes[label::labels]) * min(ratios) < 1:
            continue  # in too few pictures to be shared out
        for ratio, side in zip(ratios, divided, strict=True):
            here = sum(count for group in side for name, count in group.strata.items() if name == f"label {label}")
            assert abs(here - ratio * all_of) <= 6


def test_a_split_that_would_be_empty_is_an_error(tmp_path: Path) -> None:
    group = Group((Item(Path("d"), ":1", {}, None),) * 3, {"label a": 3})
    with pytest.raises(InputError, match="val would be empty: there are 1 groups"):
        divide([group], (0.8, 0.2), 0)


_SUM = "must be two or three shares that add up to 1"


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ("0.8", _SUM),
        ("0.8,0.3", _SUM),
        ("0.5,0.2,0.2,0.1", _SUM),
        ("a,b", "'a' is not a number"),
        ("1,0,0", "1.0 must be below 1"),
    ],
)
def test_wrong_ratios_are_told(ratios: str, told: str, tmp_path: Path) -> None:
    done = run("split", tmp_path / "data.jsonl", "--output", tmp_path / "out", "--ratios", ratios)
    assert done.exit_code == 2 and told in done.stderr
