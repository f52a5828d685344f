"""What the drawn cells say and show, for every kind of answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from answers import ground, vqa
from edgetune_bench.gallery import choose, samples
from edgetune_runtime.bench.predictions import Prediction, read

TRUTH, ANSWER = (np.array(ImageColor.getrgb(colour)) for colour in ("#00e676", "#ffab00"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A grey picture of 512 x 384 pixels, twice the size of a cell."""
    Image.new("RGB", (512, 384), (200, 200, 200)).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


TARGET = [100.0, 80.0, 300.0, 240.0]


def answer(image: Path, number: int = 1, **values: Any) -> Prediction:
    return read(ground(str(image), [], truth=[TARGET], number=number) | {"text": "the owl", "status": "found"} | values)


@pytest.mark.parametrize(
    ("values", "score", "right"),
    [
        ({"boxes": [[100, 80, 300, 160]]}, "IoU 0.50", True),
        ({"boxes": [[100, 80, 300, 158.4]]}, "IoU 0.49", False),
        ({"status": "refused"}, "says it is not there", False),
        ({"status": "unparsed"}, "no box in the answer", False),
        ({"truth": [], "status": "refused"}, "says it is not there", True),
        ({"truth": [], "boxes": [[0, 0, 50, 50]]}, "a box where nothing is", False),
        ({"truth": [], "status": "unparsed"}, "no box in the answer", False),
    ],
)
def test_a_cell_says_how_good_its_answer_is(image: Path, values: dict[str, Any], score: str, right: bool) -> None:
    (sample,) = samples({"int4": [answer(image, **values)]}, ["d.jsonl:1"])
    truth, cell = sample.cells
    assert (cell.who, cell.score, cell.right) == ("int4", score, right)
    assert (truth.score == "not in the picture") == (values.get("truth") == [])
    assert truth.right is None


def test_boxes_are_drawn_where_they_are_at_the_size_of_the_cell(image: Path) -> None:
    (sample,) = samples({"x": [answer(image, boxes=[[200.0, 100.0, 400.0, 300.0]])]}, ["d.jsonl:1"])
    for cell, colour, box in zip(sample.cells, (TRUTH, ANSWER), ((50, 40, 150, 120), (100, 50, 200, 150)), strict=True):
        assert cell.image.size == (256, 192)
        rows, columns = (np.asarray(cell.image) == colour).all(axis=2).nonzero()
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, box)).max() <= 2


def test_a_dark_picture_is_lifted_and_a_bright_one_is_not(image: Path, tmp_path: Path) -> None:
    Image.new("RGB", (512, 384), (40, 20, 10)).save(tmp_path / "dark.png")
    for path, expected in ((tmp_path / "dark.png", [160, 80, 40]), (image, [200, 200, 200])):
        (sample,) = samples({"x": [answer(path)]}, ["d.jsonl:1"])
        assert np.asarray(sample.cells[1].image)[5, 5].tolist() == expected


def test_columns_are_the_models_in_their_order_and_rows_the_chosen_records(image: Path) -> None:
    rows = [answer(image, number, text=f"the owl {number}") for number in range(1, 10)]
    rows[0] = read(vqa(str(image), "red", ["red"], 1))
    chosen = choose(rows, 3)
    assert chosen == ["d.jsonl:2", "d.jsonl:6", "d.jsonl:9"]
    drawn = samples({"b": rows, "a": list(reversed(rows))}, chosen)
    assert [sample.phrase for sample in drawn] == ["the owl 2", "the owl 6", "the owl 9"]
    assert [cell.who for cell in drawn[0].cells] == ["truth", "b", "a"]
    assert choose(rows, 99) == [f"d.jsonl:{number}" for number in range(2, 10)]
    assert choose(rows[:1], 3) == []
