"""What lets the answers to the shards of a set be joined: the records' numbers, and a sha256 of what a shard asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgetune_runtime.bench.predictions import GroundPrediction, Prediction
from edgetune_runtime.records import Record

Numbered = tuple[int, Record]
"""A record with its number, from 1, in the whole set."""


def records_sha256(records: Iterable[Numbered]) -> str:
    """Return one sha256 over records: number, kind, question and accepted answer of each, in their order."""
    return _sha256(
        [number, record.kind, record.text, record.answers if record.boxes is None else record.boxes.tolist()]
        for number, record in records
    )


def answered_sha256(answers: Iterable[Prediction]) -> str:
    """Return the same of the records that numbered answers are to."""
    return _sha256(
        [each.number, each.kind, each.text, each.truth if isinstance(each, GroundPrediction) else each.expected]
        for each in answers
    )


def numbered(answers: Sequence[Prediction], records: Sequence[Numbered]) -> tuple[Prediction, ...]:
    """Return answers with the numbers of their records, which are in the same order."""
    return tuple(_with_number(answer, number) for answer, (number, _) in zip(answers, records, strict=True))


def joined(parts: Iterable[Sequence[Prediction]]) -> tuple[Prediction, ...]:
    """Return numbered answers of several shards in the order of the whole set, as an undivided run has them."""
    every = sorted((answer for part in parts for answer in part), key=lambda answer: answer.number or 0)
    return tuple(_with_number(answer, None) for answer in every)


def _with_number(answer: Prediction, number: int | None) -> Prediction:
    return replace(answer, number=number)


def _sha256(values: Iterable[Sequence[object]]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value).encode() + b"\n")
    return digest.hexdigest()
