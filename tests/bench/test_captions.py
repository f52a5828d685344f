"""CIDEr-D and BLEU against the values of the programs that published and that keep them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import sacrebleu

from edgetune_bench.captions import bleu, cider_d, words
from edgetune_runtime.errors import InputError, MissingDependency

SAID = ["a red cup on the table", "two dogs left of the man", "blue sky", "the hat is red"]
WANTED = [
    ["the red cup is on a table", "a cup on the table"],
    ["two dogs to the left of a man"],
    ["the sky is blue", "blue sky", "a clear sky"],
    ["a red hat", "the hat of the man is red", "red"],
]


def test_cider_d_equals_the_published_program() -> None:
    # From pycocoevalcap 1.2, cider.Cider().compute_score; benchmarks/peers/text_scores.py computes them anew.
    expected = [4.676103445326292, 2.88512625750898, 2.857533657142546, 2.10259659765982]
    assert cider_d(SAID, WANTED) == pytest.approx(expected, rel=1e-12)


def test_cider_d_of_perfect_answers_grows_with_the_n_grams_they_have() -> None:
    texts = ["cat", "small dog", "one tall tree", "boat on a lake"]
    assert cider_d(texts, [[text] for text in texts]) == pytest.approx([2.5, 5.0, 7.5, 10.0])
    assert cider_d(["", "x"], [["a b"], ["c"]]) == [0.0, 0.0]


def test_words_keep_marks_inside_and_drop_those_around() -> None:
    assert words("Don't stop, at 2:50 (3.5 km)!") == ["don't", "stop", "at", "2:50", "3.5", "km"]


def test_cider_d_needs_a_corpus() -> None:
    with pytest.raises(InputError, match="two records"):
        cider_d(["a"], [["a"]])
    with pytest.raises(InputError, match="at least one reference"):
        cider_d(["a", "b"], [["a"], []])


def test_bleu_is_sacrebleu_s_with_references_of_any_number() -> None:
    found = bleu(SAID, WANTED, range(4))
    padded: Any = [[one[k] if k < len(one) else None for one in WANTED] for k in range(3)]
    expected = sacrebleu.BLEU(effective_order=True).corpus_score(SAID, padded)
    assert found["bleu"] == pytest.approx(expected.score)
    assert "tok:13a" in found["bleu_signature"] and "eff:yes" in found["bleu_signature"]
    interval = found["bleu_interval"]
    assert interval.low < found["bleu"] < interval.high


def test_the_interval_of_bleu_is_that_of_whole_sets() -> None:
    """Every bootstrap sample of equal images is the set itself, so sums over sentences must give its score."""
    found = bleu(SAID * 2, WANTED * 2, [0] * 4 + [1] * 4, resamples=50)
    assert found["bleu_interval"].low == found["bleu_interval"].high == pytest.approx(found["bleu"])
    assert found["bleu"] == pytest.approx(bleu(SAID, WANTED, range(4))["bleu"])
    assert bleu(SAID, WANTED, [0] * 4)["bleu_interval"] is None


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(MissingDependency, match="BLEU needs sacrebleu"):
        bleu(SAID, WANTED, range(4))
