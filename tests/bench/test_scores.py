"""Aggregation against figures worked out by hand and by brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest

from answers import ground, measured, part, predictions, row, vqa
from edgetune_bench.table import accuracy_table, cost_table, markdown, remarks
from edgetune_runtime.bench.figures import McNemarTest
from edgetune_runtime.bench.predictions import Prediction, grounding, read
from edgetune_runtime.bench.results import Failed
from edgetune_runtime.bench.scores import box_drift, compare, summarise
from edgetune_runtime.errors import InputError
from edgetune_runtime.timing import STAGES


def test_every_kind_of_answer_is_counted_once_and_over_the_right_records() -> None:
    refused = ground("f", [], truth=[]) | {"status": "refused"}
    rows = predictions(
        [
            ground("a", part(1.0)),
            ground("b", part(0.8)),
            ground("c", part(0.6)),
            ground("d", []),
            ground("e", []) | {"status": "refused"},
            refused,
            ground("g", part(0.5), truth=[]),
            vqa("h", "Red.", ["red"]),
            vqa("i", "rod", ["red"]),
        ]
    )
    found = summarise(rows)
    ious = [row.iou for row in grounding(rows)]
    assert ious == [1.0, pytest.approx(0.8), pytest.approx(0.6), 0.0, 0.0, None, None]
    scores = found["ground"]
    assert (scores.samples, scores.present) == (7, 5)
    assert (scores.acc50, scores.acc75, scores.acc90) == (3 / 5, 2 / 5, 1 / 5)
    assert scores.miou == pytest.approx(2.4 / 5)
    assert (scores.refused_absent, scores.refusal_accuracy, scores.false_refusals) == (1, 1 / 2, 1 / 5)
    assert (scores.refused, scores.refusal_precision) == (2, 1 / 2)
    assert (scores.unparsed, scores.parse_failures) == (1, 1 / 7)
    vqa_scores = found["vqa"]
    assert (vqa_scores.samples, vqa_scores.accuracy) == (2, 0.5)
    assert vqa_scores.anls == pytest.approx((0.75 + 2 / 3) / 2)


def test_stages_are_percentiles_over_records_and_speed_a_median() -> None:
    seconds = [5.0, 1.0, 4.0, 2.0, 3.0]
    rows = predictions(
        [vqa("a", "x", ["x"]) | row("a", i, seconds=s, tokens=1 + 10 * i) for i, s in enumerate(seconds)]
    )
    found = summarise(rows)
    for stage in STAGES:
        # Linear between order statistics: position p * (n - 1) of 1, 2, 3, 4, 5.
        assert astuple(getattr(found["stages"], stage)) == pytest.approx((3.0, 4.8, 4.96))
    # Decode speeds 10/1, 20/4, 30/2, 40/3; the record of one token has none.
    assert found["tokens_per_second"] == pytest.approx((10 + 40 / 3) / 2)


def test_the_paired_interval_is_that_of_all_resamples_of_the_images() -> None:
    """With five images all 5^5 resamples can be listed, which gives the interval that drawing approaches."""
    generator = np.random.default_rng(3)
    images = ["a", "a", "a", "b", "c", "c", "d", "e"]
    before, after = generator.random(len(images)), generator.random(len(images))
    found = compare(
        predictions(
            [ground(image, part(share), number=i) for i, (image, share) in enumerate(zip(images, after, strict=True))]
        ),
        predictions(
            [ground(image, part(share), number=i) for i, (image, share) in enumerate(zip(images, before, strict=True))]
        ),
    )
    members = {image: [i for i, other in enumerate(images) if other == image] for image in images}
    means = []
    for drawn in itertools.product(members, repeat=len(members)):
        chosen = [i for image in drawn for i in members[image]]
        means.append(np.mean(after[chosen] - before[chosen]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.miou is not None and found.acc50 is not None and found.mcnemar is not None
    assert found.miou.value == pytest.approx(np.mean(after - before))
    spread = high - low
    assert found.miou.low == pytest.approx(low, abs=0.03 * spread)
    assert found.miou.high == pytest.approx(high, abs=0.03 * spread)
    hits = list(zip(before >= 0.5, after >= 0.5, strict=True))
    assert found.acc50.value == pytest.approx(np.mean(after >= 0.5) - np.mean(before >= 0.5))
    assert found.mcnemar.only_baseline == hits.count((True, False))
    assert found.mcnemar.only_row == hits.count((False, True))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    before = predictions([ground(str(i), part(1.0 if i < 3 else 0.1), number=i) for i in range(12)])
    after = predictions([ground(str(i), part(1.0 if i in (0, 1, *range(4, 11)) else 0.1), number=i) for i in range(12)])
    # One record only the baseline gets, seven only the other: two-sided, out of eight fair coins.
    assert compare(after, before).mcnemar == McNemarTest(1, 7, 2 * (math.comb(8, 0) + math.comb(8, 1)) / 2**8)


def test_a_single_image_has_no_interval_but_keeps_its_mean() -> None:
    rows = predictions([ground("a", part(0.6), number=1), ground("a", part(0.8), number=2)])
    found = summarise(rows)
    assert found["ground"].miou_interval is None
    assert compare(rows, rows).miou is None
    line = accuracy_table([measured("x", [ground("a", part(0.6), number=1), ground("a", part(0.8), number=2)])])[0]
    assert line["mIoU [95 %]"] == "70.0"


def test_differences_of_questions_are_of_their_accuracy() -> None:
    before = predictions([vqa("a", "red", ["red"], 1), vqa("b", "blue", ["red"], 2)])
    after = predictions([vqa("a", "red", ["red"], 1), vqa("b", "red", ["red"], 2)])
    found = compare(after, before)
    assert found.vqa is not None and found.vqa.value == 0.5
    assert (found.miou, found.mcnemar) == (None, None)


def test_tables_keep_failed_rows_and_drop_columns_that_nobody_fills() -> None:
    rows = [ground("a", part(0.8), number=1), ground("b", part(0.4), number=2)]
    good = measured("good", rows, others_cpu_share=0.5)
    bad = Failed(name="bad", path="x", kind="bundle", baseline=False, reason="killed | by SIGKILL", exit_code=-9)
    accuracy, cost = accuracy_table([bad, good]), cost_table([bad, good])
    assert [line["row"] for line in accuracy] == ["bad (failed)", "good"]
    assert accuracy[1]["Acc@0.5"] == 50.0
    assert not any(key.startswith("VQA") for key in accuracy[0])
    assert cost[0]["total ms"] is None
    assert cost[1]["total ms"] == "1000/1000/1000"
    assert remarks([bad, good]) == [
        "bad: failed (exit code -9): killed | by SIGKILL",
        "good: timings are noisy, other processes used 50% of the CPU meanwhile",
    ]
    lines = markdown([{"a|b": 0.123456, "c": None}]).splitlines()
    assert lines == ["| a\\|b | c |", "| --- | --- |", "| 0.1235 | - |"]


def moved(image: str, shares: list[float], number: int = 0) -> Prediction:
    """An answer with a box of its own place for each share, its width that share of ten pixels."""
    boxes = [[100.0 * i, 0.0, 100.0 * i + 10 * share, 10.0] for i, share in enumerate(shares)]
    return read(ground(image, boxes, number=number))


def test_box_drift_is_the_best_assignment_over_the_larger_count() -> None:
    """Boxes at places of their own overlap only their like, so the best assignment can be written down."""
    before, after = moved("a", [1.0, 1.0, 1.0]), moved("a", [0.5, 1.0])
    assert box_drift(after, before) == pytest.approx((0.5 + 1.0) / 3)
    assert box_drift(before, after) == pytest.approx((0.5 + 1.0) / 3)
    nothing, words = read(ground("a", [])), read(vqa("a", "x", ["x"]))
    assert box_drift(nothing, before) == box_drift(before, nothing) == 0.0
    assert box_drift(nothing, nothing) is None
    assert box_drift(words, words) is None


def test_drift_is_about_the_baseline_and_not_about_the_truth() -> None:
    """A row may be better than its baseline and still have moved; refusals on both sides have no boxes to compare."""
    refused = ground("d", [], number=4) | {"status": "refused"}
    before = predictions([ground("a", part(0.5), number=1), ground("b", part(1.0), number=2), refused])
    after = predictions([ground("a", part(1.0), number=1), ground("b", part(0.95), number=2), refused])
    drift = compare(after, before).drift
    assert drift is not None
    assert drift.records == 2
    assert drift.iou == pytest.approx((0.5 + 0.95) / 2)
    assert drift.moved == 0.5
    assert drift.worst.source == "d.jsonl:1"
    assert drift.worst.iou == pytest.approx(0.5)
    assert compare(predictions([refused]), predictions([refused])).drift is None


def test_the_interval_of_drift_is_that_of_all_resamples_of_the_images() -> None:
    generator = np.random.default_rng(5)
    images, shares = ["a", "a", "b", "c", "d", "d", "e"], generator.uniform(0.6, 1.0, 7)
    before = predictions([ground(image, part(1.0), number=i) for i, image in enumerate(images)])
    after = predictions([ground(image, part(shares[i]), number=i) for i, image in enumerate(images)])
    drift = compare(after, before).drift
    members = {image: [i for i, other in enumerate(images) if other == image] for image in images}
    for key, values in (("iou", shares), ("moved", shares < 0.9)):
        means = [
            np.mean([values[i] for image in drawn for i in members[image]])
            for drawn in itertools.product(members, repeat=5)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        found = getattr(drift, f"{key}_interval")
        assert found.value == getattr(drift, key) == pytest.approx(np.mean(values))
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))
        assert (found.records, found.images) == (7, 5)


def test_answers_to_other_records_are_not_compared() -> None:
    rows = [ground("a", part(0.5), number=1), ground("b", part(0.5), number=2)]
    before = predictions(rows)
    with pytest.raises(InputError, match=r"answer 1 is of d\.jsonl:2 'thing 2', not of d\.jsonl:1 'thing 1'"):
        compare(before[::-1], before)
    with pytest.raises(InputError, match="1 answers where there are 2 records"):
        compare(before[:1], before)
    with pytest.raises(InputError, match="answer 2 has another truth"):
        compare(predictions([rows[0], rows[1] | {"truth": [[0.0, 0.0, 9.0, 9.0]]}]), before)
    copied = predictions([row | {"source": row["source"].replace("d.", "copy.")} for row in rows])
    assert compare(copied, before).miou is not None


def test_a_row_s_name_is_only_text_in_a_table() -> None:
    name = "<img src=x onerror=alert(1)> & [a](https://b) \x1b[31m\n| x"
    line = markdown([{"row": name}]).splitlines()[2]
    assert line == "| &lt;img src=x onerror=alert(1)&gt; &amp; [a]\\(https://b) [31m \\| x |"
