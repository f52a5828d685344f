"""Scores of text answers: VQA soft accuracy (arXiv 1505.00468) and ANLS (arXiv 1905.13648)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgetune_runtime.errors import InputError

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}


def normalize_answer(text: str) -> str:
    """Return an answer as VQA compares it: lower case, without punctuation and articles, number words as digits.

    Apostrophes go too, where the official script restores them: "dont" and "don't" are equal either way.
    """
    text = text.lower().replace("'", "").replace("’", "")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    text = re.sub(r"[^\w\s.]|_", " ", text)
    return " ".join(_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the soft accuracy (0-1) of an answer against those of several people.

    Three people who agree make it fully right; the score is the mean over leaving each person out, as
    in the VQA evaluation. With fewer than four answers, one that agrees is enough.

    Raises:
        InputError: there are no answers.
    """
    if not answers:
        raise InputError("no answers to compare with")
    said = normalize_answer(prediction)
    agree = [normalize_answer(answer) == said for answer in answers]
    if len(answers) < 4:
        return float(any(agree))
    total = sum(agree)
    return sum(min(1.0, (total - own) / 3) for own in agree) / len(agree)


def anls(prediction: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """Return the normalised Levenshtein similarity (0-1) to the nearest answer.

    A distance of `threshold` of the longer text or more scores 0. Case and runs of white space do not count.

    Raises:
        InputError: there are no answers.
    """
    if not answers:
        raise InputError("no answers to compare with")
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        wanted = " ".join(answer.lower().split())
        distance = _edit_distance(said, wanted) / max(len(said), len(wanted), 1)
        best = max(best, 1 - distance if distance < threshold else 0.0)
    return best


def _edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance, in O(len * len) time and one row of memory."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
