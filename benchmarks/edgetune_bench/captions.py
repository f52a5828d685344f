"""How near longer answers come to several references: CIDEr-D, and BLEU by sacrebleu."""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune_runtime.bench.figures import ScoreInterval
from edgetune_runtime.bench.significance import draws
from edgetune_runtime.errors import InputError, MissingDependency, install_command

Words = Sequence[str]
_LONGEST = 4  # words of an n-gram
_SIGMA = 6.0  # words of difference in length that the penalty forgives


def words(text: str) -> list[str]:
    """Lower-case words of a text; marks between letters or digits (don't, 2:50, 3.5) stay, others go."""
    return re.findall(r"\w+(?:['’.:,-]\w+)*", text.lower())


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D (0-10) of each of N answers against its own references.

    The mean cosine of tf-idf vectors of n-grams, n = 1 to 4, with counts clipped to the reference's and a Gaussian
    penalty on the difference in length (arXiv 1411.5726, section 8 and equation 11). How common an n-gram is comes from
    the references of all N records, so a score depends on the set. An answer too short for some n scores 0 for that n:
    a perfect single word reaches 2.5.

    Raises:
        InputError: counts differ, a record has no reference, or there are fewer than two records.
    """
    if len(predictions) != len(references) or not all(references):
        raise InputError("CIDEr-D needs a prediction and at least one reference for each record")
    if len(predictions) < 2:
        raise InputError("CIDEr-D needs at least two records: it weighs words by how few records have them")
    said = [_counts(words(text)) for text in predictions]
    wanted = [[_counts(words(text)) for text in texts] for texts in references]
    holding = Counter(gram for texts in wanted for gram in set().union(*texts))
    rarity = {gram: math.log(len(wanted) / count) for gram, count in holding.items()}
    unseen = math.log(len(wanted))

    def weigh(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_LONGEST)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return vectors

    scores = []
    for mine, others in zip(said, wanted, strict=True):
        vectors = weigh(mine)
        length = _length(mine)
        total = 0.0
        for other in others:
            penalty = math.exp(-((length - _length(other)) ** 2) / (2 * _SIGMA**2))
            total += penalty * sum(map(_clipped_cosine, vectors, weigh(other))) / _LONGEST
        scores.append(10 * total / len(others))
    return scores


def _counts(tokens: Words) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs, for n from 1 to 4."""
    spans = ((start, start + n) for n in range(1, _LONGEST + 1) for start in range(len(tokens) - n + 1))
    return Counter(tuple(tokens[start:end]) for start, end in spans)


def _length(counts: Counter[tuple[str, ...]]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)


def _clipped_cosine(mine: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    """Cosine of two sparse vectors, where the first's entries count up to the second's."""
    norms = math.hypot(*mine.values()) * math.hypot(*other.values())
    shared = sum(min(value, other[gram]) * other[gram] for gram, value in mine.items() if gram in other)
    return shared / norms if norms else 0.0


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return sacrebleu's corpus BLEU (0-100), its signature, and a percentile interval over images drawn again.

    Orders that no answer is long enough for are left out (`eff:yes`), or sets of single words would all score 0.

    Args:
        predictions: N answers.
        references: of each answer, at least one.
        groups: the image of each answer [N].
        seed: of the random generator.
        resamples: number of bootstrap samples.
        level: coverage of the interval.

    Raises:
        MissingDependency: sacrebleu is not installed.
        InputError: there is nothing to score.
    """
    if not predictions or not all(references):
        raise InputError("BLEU needs predictions and at least one reference for each")
    metric = library().BLEU(effective_order=True)
    whole = metric.corpus_score(list(predictions), [list(stream) for stream in zip_longest(*references)])
    parts = [metric.sentence_score(said, list(texts)) for said, texts in zip(predictions, references, strict=True)]
    sums = np.array([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts], np.int64)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    by_group = np.zeros((len(numbers), sums.shape[1]), np.int64)
    np.add.at(by_group, [numbers[group] for group in groups], sums)
    found: dict[str, Any] = {"bleu": whole.score, "bleu_signature": str(metric.get_signature()), "bleu_interval": None}
    if len(numbers) < 2:
        return found
    drawn = [by_group[chosen].sum(axis=1) for chosen in draws(len(numbers), seed=seed, resamples=resamples)]
    scores = [_from_sums(metric, row) for row in np.concatenate(drawn)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    interval = ScoreInterval(whole.score, float(low), float(high), len(parts), len(numbers))
    return found | {"bleu_interval": interval}


def _from_sums(metric: Any, row: npt.NDArray[np.int64]) -> float:
    *grams, said, wanted = row.tolist()
    options = {"smooth_method": metric.smooth_method, "effective_order": metric.effective_order}
    return float(metric.compute_bleu(grams[:_LONGEST], grams[_LONGEST:], said, wanted, **options).score)


def library() -> Any:
    """Return sacrebleu's metrics.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        return importlib.import_module("sacrebleu.metrics")
    except ImportError as error:
        raise MissingDependency("BLEU needs sacrebleu", hint=install_command("metrics")) from error
