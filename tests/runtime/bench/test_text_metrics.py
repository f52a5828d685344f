"""Text scores against values of the published programs, which `benchmarks/peers/text_scores.py` computes anew."""

from __future__ import annotations

import pytest

from edgetune_runtime.bench.text_metrics import anls, exact_match, normalize_answer, vqa_accuracy
from edgetune_runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # From processPunctuation and processDigitArticle of vqaEval.py at github.com/GT-Vision-Lab/VQA.
        ("Dont know.", "don't know"),
        ("couldnt've", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("girl's", "girl's"),
        ("its", "its"),
        ("im", "im"),
        ("1,000 cups", "1000 cups"),
        ("10,000-20,000", "1000020000"),
        ("St. Louis", "st louis"),
        ("U.S.A.", "usa"),
        (".5 mile", ".5 mile"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("ice-cream", "ice cream"),
        ("salt- and-pepper", "salt andpepper"),
        ("a man, and the dog", "man and dog"),
        ("2:50 pm", "2:50 pm"),
        ("Two", "2"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("100%", "100%"),
    ],
)
def test_answers_are_normalised_as_by_the_published_script(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("yes", ["yes"] * 10, 1.0),
        # The examples of the VQA evaluation: n of ten people agree.
        ("yes", ["yes"] * 1 + ["no"] * 9, 0.3),
        ("yes", ["yes"] * 2 + ["no"] * 8, 0.6),
        ("yes", ["yes"] * 3 + ["no"] * 7, 0.9),
        ("yes", ["yes"] * 4 + ["no"] * 6, 1.0),
        ("yes", ["yes"] * 2 + ["Yes."] + ["no"] * 7, 0.9),
        ("no", ["yes"] * 10, 0.0),
        ("The Red cup!", ["red cup"], 1.0),
        ("two", ["2"], 1.0),
        ("dont know", ["don't know"], 1.0),
        ("3.5", ["35"], 0.0),
        ("cup", ["cups"], 0.0),
        ("girls", ["girl's"], 0.0),
        ("b", ["a", "b", "c"], 1.0),
    ],
)
def test_vqa_accuracy(prediction: str, answers: list[str], expected: float) -> None:
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7),  # the textbook pair: distance 3
        # From anls_score of the package anls 0.0.2.
        ("Coca Cola", ["coca cola", "pepsi"], 1.0),
        ("coca-cola", ["Coca  Cola"], 0.8888888888888888),
        ("12/05/1997", ["12/05/1991", "05/12"], 0.9),
        ("ab", ["ax"], 0.0),  # half of it wrong is the threshold
        ("", ["x"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls(prediction: str, answers: list[str], expected: float) -> None:
    assert anls(prediction, answers) == pytest.approx(expected)


def test_exact_match_forgives_case_and_white_space_only() -> None:
    assert exact_match(" Two  cups\n", ["none", "two cups"]) == 1.0
    assert exact_match("two cups.", ["two cups"]) == 0.0
    assert exact_match("2 cups", ["two cups"]) == 0.0


def test_text_metrics_need_answers() -> None:
    for metric in (vqa_accuracy, anls, exact_match):
        with pytest.raises(InputError, match="no answers"):
            metric("x", [])
