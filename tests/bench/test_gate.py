"""The gate: its three outcomes, the statistics behind them against simulation, and the verb's exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from answers import Row, ground, part, results
from edgetune.cli import cli
from edgetune.commands import gate as verb
from edgetune_bench.gate import METRICS, check_rows, least_half_width, worst
from edgetune_runtime.bench.scores import difference


def sample(before: list[bool], after: list[bool], *, copies: int = 1, **costs: Any) -> dict[str, Any]:
    """Results of a baseline and a row `q` that hit or miss a picture each; `copies` repeats them with new pictures."""
    runs: dict[str, list[Row] | str] = {}
    for name, hits in (("base", before), ("q", after)):
        runs[name] = [ground(f"{i}", part(1.0 if hit else 0.1), number=i) for i, hit in enumerate(hits * copies)]
    return results(runs, baseline="base", **costs)[0]


def lost(count: int, of: int) -> dict[str, Any]:
    """A row that misses `count` of the `of` pictures that its baseline gets right."""
    return sample([True] * of, [False] * count + [True] * (of - count))


def drop(found: dict[str, Any], limit: float, metric: str = "acc@0.5") -> Any:
    (check,) = [c for c in check_rows(found, max_drop=limit, metrics=[metric]) if c.name.startswith("drop")]
    return check


def test_a_drop_passes_only_with_its_whole_interval() -> None:
    found = lost(20, 400)  # 5 points, give or take 2.1
    assert drop(found, 8.0).outcome == "pass"
    assert drop(found, 4.0).outcome == "fail"
    assert drop(found, 4.0).remark == "1.00 points over, with more records it may be less"
    assert drop(found, 1.0).remark == "4.00 points over"
    near = drop(found, 6.0)
    assert near.outcome == "fail"
    assert near.value == pytest.approx(5.0)
    # 5 + 1.96 * sqrt(.05 * .95 / 400), as a normal approximation has it
    assert near.upper == pytest.approx(5.0 + 196 * math.sqrt(0.05 * 0.95 / 400), abs=0.15)
    assert near.remark.startswith(f"the upper end of its interval is {near.upper - 6:.2f} points over; about ")


def test_too_few_records_to_tell_are_an_outcome_of_their_own() -> None:
    """Of 20 pictures, one miss is 5 points, give or take more than the 6 that are allowed."""
    assert drop(lost(1, 20), 6.0).outcome == "inconclusive"
    assert drop(lost(2, 20), 6.0).outcome == "fail"  # 10 points are over it, whatever the interval


def test_the_records_that_would_tell_do_tell() -> None:
    """With the same pictures over and over the estimate stays, and the interval shrinks as with new ones like them."""
    before, after = [True] * 100, [False] * 3 + [True] * 97
    for limit in (4.0, 5.0):
        doubt = drop(sample(before, after), limit)
        assert doubt.outcome != "pass"
        copies = math.ceil(doubt.records_needed / 100)
        assert drop(sample(before, after, copies=math.ceil(1.1 * copies)), limit).outcome == "pass"
        assert drop(sample(before, after, copies=copies // 2), limit).outcome != "pass"


def test_pictures_that_all_agree_do_not_prove_that_others_would() -> None:
    """Ten pictures without a difference have a bootstrap interval of no width; the gate knows better."""
    few = drop(lost(0, 10), 1.0)
    assert few.outcome == "inconclusive"
    assert drop(lost(0, few.records_needed), 1.0).outcome == "pass"
    assert drop(lost(0, few.records_needed - 1), 1.0).outcome == "inconclusive"


def test_the_least_width_is_the_adjusted_interval_of_a_table_without_changes() -> None:
    """Agresti & Min 2005: the Wald interval of matched proportions after adding one half to each of the four cells."""
    for images in (10, 300):
        both, only_first, only_second, neither = images - 4 + 0.5, 0.5, 0.5, 4 + 0.5
        n = both + only_first + only_second + neither
        variance = ((only_first + only_second) - (only_first - only_second) ** 2 / n) / n**2
        assert least_half_width(images) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("rate", [0.01, 0.04])
def test_a_row_at_the_limit_rarely_passes(rate: float) -> None:
    """Where the true drop equals the limit about one sample in twenty passes: rare misses err on one side."""
    generator = np.random.default_rng(7)
    found, images = lost(0, 3), [str(i) for i in range(150)]
    passed = 0
    for _ in range(200):
        misses = generator.random(len(images)) < rate
        found["rows"][1]["delta"]["acc50"] = difference(np.ones(len(images)), ~misses, images)
        passed += drop(found, 100 * rate).outcome == "pass"
    assert passed <= 20  # of 200, about 10 expected; more than 20 would happen once in some 700 runs


def test_records_of_one_picture_are_not_counted_as_many_pictures() -> None:
    alone = lost(0, 400)
    runs: dict[str, list[Row] | str] = {
        name: [ground(f"{i // 100}", part(1.0), number=i) for i in range(400)] for name in ("base", "q")
    }
    assert drop(alone, 1.0).outcome == "pass"
    assert drop(results(runs, baseline="base")[0], 1.0).outcome == "inconclusive"


def test_box_iou_counts_what_is_missing_to_the_baselines_boxes() -> None:
    runs: dict[str, list[Row] | str] = {
        "base": [ground(f"{i}", part(1.0), number=i) for i in range(300)],
        "q": [ground(f"{i}", part(0.97), number=i) for i in range(300)],
    }
    check = drop(results(runs, baseline="base")[0], 4.0, "box-iou")
    assert check.value == pytest.approx(3.0)
    assert check.outcome == "pass"


def test_budgets_are_broken_by_how_much() -> None:
    found = sample([True] * 3, [True] * 3, size_bytes=30_500_000, peak_rss_bytes=90_000_000, cold_start_s=0.5)
    budgets = {"p95_ms": 999.0, "size_mb": 30.5, "memory_mb": 80.0, "cold_start_s": 0.6}
    checks = {check.name: check for check in check_rows(found, budgets=budgets)}
    assert {name: check.outcome for name, check in checks.items()} == {
        "runs": "pass",
        "p95": "fail",  # every answer took a second
        "size": "pass",
        "memory": "fail",
        "cold start": "pass",
    }
    assert checks["p95"].message == "1000 ms, at most 999 allowed: 1 ms over"
    assert checks["memory"].remark == "10 MB over"


def test_a_failed_row_fails_and_so_does_a_row_whose_baseline_failed() -> None:
    rows = [ground(f"{i}", part(1.0), number=i) for i in range(3)]
    found, _ = results({"base": rows, "bad": "no engine"}, baseline="base")
    (check,) = check_rows(found, max_drop=1.0)
    assert (check.name, check.outcome, check.remark) == ("runs", "fail", "no engine")
    found, _ = results({"base": "out of memory", "q": rows}, baseline="base")
    checks = check_rows(found, max_drop=1.0)
    assert worst(checks) == "fail"
    assert checks[-1].remark == "the baseline base failed"


def write(path: Path, found: dict[str, Any]) -> Path:
    path.write_text(json.dumps(found))
    return path


def gate(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["gate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("misses", "pictures", "limit", "code"), [(20, 400, 8, 0), (20, 400, 6, 1), (20, 400, 4, 1), (1, 20, 6, 4)]
)
def test_the_exit_code_says_how_it_ended(tmp_path: Path, misses: int, pictures: int, limit: float, code: int) -> None:
    file = write(tmp_path / "r.json", lost(misses, pictures))
    done = gate(file, "--max-drop", limit, "--json")
    assert done.exit_code == code, done.output
    report = json.loads(done.stdout)
    assert report["outcome"] == {0: "pass", 1: "fail", 4: "inconclusive"}[code]
    assert [check["name"] for check in report["checks"]] == ["runs", "drop of acc@0.5"]
    assert (done.stderr == "") == (code == 0)
    assert gate(file, "--max-drop", limit, "--allow-inconclusive").exit_code == (0 if code == 4 else code)


def test_a_failure_outweighs_a_doubt(tmp_path: Path) -> None:
    file = write(tmp_path / "r.json", lost(1, 20))
    done = gate(file, "--max-drop", 6, "--max-size-mb", 4.5)
    assert done.exit_code == 1
    assert done.stderr == "error: 1 of 3 checks failed: q, size: 0.5 MB over\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give at least one limit"),
        (["--metric", "miou"], "--metric needs --max-drop"),
        (["--max-drop", "1", "--row", "Q"], "no row 'Q' in the results\nhint: rows: base, q"),
        (["--max-drop", "1", "--row", "base"], "base is the baseline, which cannot drop"),
        (["--max-drop", "1", "--metric", "vqa"], "q: no difference of vqa in the results"),
        (["--max-drop", "1", "--row", "bas"], "no row 'bas' in the results\nhint: did you mean 'base'?"),
        (["--max-drop", "1", "--metric", "acc@.5"], "Did you mean 'acc@0.5'?"),
        (["--max-gpu-mb", "1"], "q: GPU memory was not measured"),
        (["--max-drop", "-1"], "x>=0"),
        (["--max-drop", "1", "--junit", "nowhere/g.xml"], "nowhere/g.xml: No such file"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = gate(write(tmp_path / "r.json", lost(1, 5)), *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not the results of a measurement"),
        ('{"rows": [], "data": {}, "schema": 99}', "schema 99, this version reads schema 1"),
        ('{"rows": [], "data": {}, "schema": 1, "baseline": null}', "the baseline only"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    done = gate(tmp_path / "r.json", "--max-drop", 1)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_a_baseline_there_is_nothing_to_drop_from(tmp_path: Path) -> None:
    found, _ = results({"q": [ground(f"{i}", part(1.0), number=i) for i in range(3)]})
    file = write(tmp_path / "r.json", found)
    assert "no baseline to drop from" in gate(file, "--max-drop", 1).stderr
    assert gate(file, "--max-p50-ms", 1000).exit_code == 0


def test_the_verb_offers_every_metric() -> None:
    (option,) = [param for param in verb.command.params if param.name == "metrics"]
    assert list(option.type.choices) == list(METRICS)  # type: ignore[attr-defined]
