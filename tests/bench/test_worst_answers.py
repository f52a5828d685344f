"""The page of the worst answers: which are on it, in what order, and what is drawn."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from answers import ground, part, predictions, vqa
from edgetune_bench.gallery import choose_worst, error_page, sort
from edgetune_runtime.bench.predictions import Prediction


def sure(row: dict[str, Any], *scores: float) -> dict[str, Any]:
    return row | {"scores": list(scores)}


def rows(image: str = "a") -> tuple[Prediction, ...]:
    far = [[50.0, 50.0, 60.0, 60.0]]
    return predictions(
        [
            sure(ground(image, part(1.0), number=1), 0.9),
            sure(ground(image, far, number=2), 0.2),
            sure(ground(image, far, number=3), 0.8),
            sure(ground(image, part(0.3), number=4), 0.5),
            sure(ground(image, part(0.2), number=5), 0.5),
            sure(ground(image, part(1.0), truth=[], number=6), 0.7),
            sure(ground(image, [], number=7) | {"status": "refused"}),
            sure(ground(image, [], truth=[], number=8) | {"status": "refused"}),
            sure(ground(image, [], number=9) | {"raw": "I do <not> know"}),
            vqa(image, "red", ["red"], 10) | {"text": "What colour?"},
            vqa(image, "blue", ["red", "crimson"], 11) | {"text": "What <colour>?"},
        ]
    )


def places(sorted_rows: Mapping[str, Sequence[Prediction]]) -> dict[str, list[int]]:
    return {kind: [int(row.source.partition(":")[2]) for row in some] for kind, some in sorted_rows.items()}


def test_every_wrong_answer_is_of_one_kind_worst_and_surest_first() -> None:
    assert places(sort(rows())) == {
        "Another place": [3, 2],
        "The place, but not the extent": [5, 4],
        "A box where nothing is": [6],
        "There, but refused": [7],
        "Neither a box nor a refusal": [9],
        "Wrong words": [11],
    }


def test_every_kind_comes_in_turn() -> None:
    assert places(choose_worst(rows(), 3)) == {
        "Another place": [3],
        "The place, but not the extent": [5],
        "A box where nothing is": [6],
    }
    assert sum(map(len, choose_worst(rows(), 7).values())) == 7
    assert choose_worst(rows(), 99) == sort(rows())


def test_answers_without_confidence_are_shown_without_one(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    row = ground(str(tmp_path / "a.png"), part(0.2)) | {"scores": [None]}
    page = error_page("x", predictions([row]), 5)
    assert "IoU 0.20<" in page and "confidence" not in page


@pytest.fixture
def page(tmp_path: Path) -> str:
    Image.new("RGB", (600, 600), (200, 200, 200)).save(tmp_path / "a.png")
    return error_page("int4", rows(str(tmp_path / "a.png")), 24)


def test_the_page_says_what_happened_and_fetches_nothing(page: str) -> None:
    assert "8 of 11 answers are wrong; the worst 8 are drawn." in page
    assert "IoU 0.00, confidence 0.80" in page
    assert "says it is not there" in page
    assert "I do &lt;not&gt; know" in page and "blue, not red or crimson" in page
    assert "http" not in page and "<script" not in page


def test_target_and_answer_are_drawn_in_one_picture(page: str) -> None:
    (data,) = re.findall(r'alt="Another place, thing 3 [^>]*base64,([^"]+)"', page)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    for colour, box in (("#00e676", (0, 0, 5, 5)), ("#ffab00", (25, 25, 30, 30))):
        near = np.abs(picture - ImageColor.getrgb(colour)).sum(-1) < 120  # JPEG
        ys, xs = near.nonzero()
        assert len(xs), colour
        assert np.abs(np.subtract((xs.min(), ys.min(), xs.max(), ys.max()), box)).max() <= 3


def test_nothing_wrong_is_a_page_too() -> None:
    assert "0 of 1 answers are wrong" in error_page("x", predictions([vqa("a", "red", ["red"])]), 5)
