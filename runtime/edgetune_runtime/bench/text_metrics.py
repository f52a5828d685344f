"""Scores of text answers: VQA soft accuracy (arXiv 1505.00468), ANLS (arXiv 1905.13648) and exact match."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgetune_runtime.errors import InputError

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# What becomes a space, or nothing where the text has it beside a space: every mark but apostrophe, colon and period.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
# Contractions that are restored when one of their apostrophes is missing. "I'm" and the like, "let's" and "she's" are
# not: their spelling without it is another word, or the published table has it with a capital that never matches.
# For "somebody'd" that table has the two sides the other way round, which makes the same answers equal.
_SPELLED = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    right[:place] + right[place + 1 :]: right
    for right in _SPELLED.split()
    for place, letter in enumerate(right)
    if letter == "'"
}


def normalize_answer(text: str) -> str:
    """Return an answer as the VQA evaluation compares it.

    Lower case; number words up to ten as digits; no articles; no periods but decimal points; other marks become a
    space, or nothing where one stands beside a space or the text has a comma between digits; missing apostrophes of
    contractions restored. This is what the published script `vqaEval.py` does (github.com/GT-Vision-Lab/VQA).
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_number_comma = re.search(r"\d,\d", text) is not None
    bare = text
    for mark in _MARKS:
        gone = has_number_comma or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if gone else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = (_NUMBERS.get(word, word) for word in bare.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the soft accuracy (0-1) of an answer against those of several people.

    Three people who agree make it fully right; the score is the mean over leaving each person out, as in the VQA
    evaluation. With fewer than four answers, one that agrees is enough. Answers are always normalised, as the
    evaluation's rules say; its script leaves that out where all people wrote the very same.

    Raises:
        InputError: there are no answers.
    """
    _check(answers)
    said = normalize_answer(prediction)
    agree = [normalize_answer(answer) == said for answer in answers]
    if len(answers) < 4:
        return float(any(agree))
    total = sum(agree)
    return sum(min(1.0, (total - own) / 3) for own in agree) / len(agree)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the answer is one of the accepted ones but for case and white space, else 0.

    Raises:
        InputError: there are no answers.
    """
    _check(answers)
    return float(_plain(prediction) in map(_plain, answers))


def anls(prediction: str, answers: Sequence[str], *, threshold: float = 0.5) -> float:
    """Return the normalised Levenshtein similarity (0-1) to the nearest answer.

    A distance of `threshold` of the longer text or more scores 0. Case and runs of white space do not count.

    Raises:
        InputError: there are no answers.
    """
    _check(answers)
    said = _plain(prediction)
    best = 0.0
    for answer in answers:
        wanted = _plain(answer)
        distance = _edit_distance(said, wanted) / max(len(said), len(wanted), 1)
        best = max(best, 1 - distance if distance < threshold else 0.0)
    return best


def _check(answers: Sequence[str]) -> None:
    if not answers:
        raise InputError("no answers to compare with")


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance, in O(len * len) time and one row of memory."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
