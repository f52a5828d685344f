"""The gate: its three outcomes, the statistics behind them against simulation, and the verb's exit codes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy import stats

from answers import Row, ground, part, results, vqa
from edgetune.cli import cli
from edgetune.commands import gate as verb
from edgetune_bench.gate import DROPS, METRICS, Check, check_rows, least_half_width, least_width_below, worst
from edgetune_runtime.bench.results import Measured, Results
from edgetune_runtime.bench.scores import difference


def sample(before: list[bool], after: list[bool], *, copies: int = 1, **costs: Any) -> Results:
    """Results of a baseline and a row `q` that hit or miss a picture each; `copies` repeats them with new pictures."""
    runs: dict[str, list[Row] | str] = {}
    for name, hits in (("base", before), ("q", after)):
        runs[name] = [ground(f"{i}", part(1.0 if hit else 0.1), number=i) for i, hit in enumerate(hits * copies)]
    return results(runs, baseline="base", **costs)[0]


def lost(count: int, of: int) -> Results:
    """A row that misses `count` of the `of` pictures that its baseline gets right."""
    return sample([True] * of, [False] * count + [True] * (of - count))


def drop(found: Results, limit: float, metric: str = "acc@0.5") -> Any:
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
        interval = difference(np.ones(len(images)), ~misses, images)
        base, row = found.rows
        assert isinstance(row, Measured) and row.delta is not None
        row = replace(row, delta=replace(row.delta, acc50=interval))
        passed += drop(replace(found, rows=(base, row)), 100 * rate).outcome == "pass"
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


def floor(found: Results, metric: str, least: float, row: str = "q") -> Check:
    (check,) = [check for check in check_rows(found, rows=[row], floors={metric: least}) if check.name == metric]
    return check


def test_a_floor_is_met_by_the_whole_interval() -> None:
    found = lost(20, 400)  # 95 %, give or take 2.1
    assert floor(found, "acc@0.5", 92).outcome == "pass"
    near = floor(found, "acc@0.5", 94)
    assert near.outcome == "inconclusive"
    assert near.value == pytest.approx(95.0)
    assert near.lower == pytest.approx(95 - 196 * math.sqrt(0.05 * 0.95 / 400), abs=0.15)
    assert (
        near.message.startswith("95.00 % [9")
        and ", at least 94 wanted: the lower end of its interval is" in near.message
    )
    under = floor(found, "acc@0.5", 96)
    assert (under.outcome, under.remark) == ("fail", "1.00 points under")


def test_the_records_that_a_floor_needs_do_tell() -> None:
    before, after = [True] * 100, [False] * 3 + [True] * 97
    doubt = floor(sample(before, after), "acc@0.5", 95)
    assert doubt.outcome == "inconclusive" and doubt.records_needed is not None
    copies = math.ceil(1.1 * doubt.records_needed / 100)
    assert floor(sample(before, after, copies=copies), "acc@0.5", 95).outcome == "pass"
    assert floor(sample(before, after, copies=copies // 2), "acc@0.5", 95).outcome == "inconclusive"


def test_pictures_that_are_all_right_do_not_prove_a_floor() -> None:
    few = floor(lost(0, 10), "acc@0.5", 90)
    assert few.outcome == "inconclusive" and few.records_needed is not None
    assert floor(lost(0, few.records_needed), "acc@0.5", 90).outcome == "pass"
    assert floor(lost(0, few.records_needed - 1), "acc@0.5", 90).outcome == "inconclusive"
    for images in (10, 300):  # Wilson 1927, as scipy has it
        (low, _) = stats.binomtest(images, images).proportion_ci(0.95, "wilson")
        assert least_width_below(images) == pytest.approx(1 - low, rel=1e-4)


def test_a_useless_model_fails_a_floor_though_its_baseline_is_as_bad(tmp_path: Path) -> None:
    """Both miss everything, so nothing is lost, and the doubt that a few pictures leave is allowed."""
    file = write(tmp_path / "r.json", sample([False] * 12, [False] * 12))
    assert gate(file, "--max-drop", 5, "--allow-inconclusive").exit_code == 0
    done = gate(file, "--max-drop", 5, "--allow-inconclusive", "--min", "acc@0.5=80")
    assert done.exit_code == 1
    assert done.stderr == "error: 1 of 3 checks failed: q, acc@0.5: 80.00 points under\n"
    report = json.loads(gate(file, "--min", "acc@0.5=80", "--json").stdout)
    assert [(check["name"], check["floor"]) for check in report["checks"]] == [("runs", None), ("acc@0.5", 80.0)]


def test_floors_of_refusals_readable_answers_and_words() -> None:
    rows: list[Row] = [ground(f"{i}", part(1.0), number=i) for i in range(10)]
    rows += [ground(f"{i}", [], truth=[], number=i) | {"status": "refused"} for i in range(10, 18)]
    rows += [ground(f"{i}", part(1.0), truth=[], number=i) for i in range(18, 20)]
    rows += [ground(f"{i}", [], number=i) | {"status": "refused"} for i in range(20, 22)]
    rows += [ground("22", [], number=22)]  # neither a box nor a refusal
    rows += [vqa(f"v{i}", "red", ["red" if i else "rod"], 30 + i) for i in range(4)]
    found, _ = results({"base": rows, "q": rows}, baseline="base")
    values = {metric: floor(found, metric, 0.0).value for metric in METRICS}
    expected = {"refusal-recall": 8 / 10, "refusal-precision": 8 / 10, "valid-box": 22 / 23, "vqa": 3 / 4}
    assert {metric: values[metric] for metric in expected} == {
        metric: pytest.approx(100 * share) for metric, share in expected.items()
    }
    assert values["anls"] == pytest.approx(100 * (3 + 2 / 3) / 4)
    assert values["acc@0.9"] == pytest.approx(100 * 10 / 13)
    assert values["box-iou"] == pytest.approx(100.0)
    assert all(floor(found, metric, 0.0).outcome == "pass" for metric in METRICS)


def damage(found: Results, place: str, value: object) -> str:
    """The file with one value replaced, by its dotted place in the row `q`, or in the whole after a slash."""
    text = found.to_dict()
    *parents, last = place.strip("/").split(".")
    inner: Any = text if place.startswith("/") else text["rows"][1]
    for key in parents:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(text)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("delta.acc50.value", math.nan, "not valid JSON: NaN is no number of JSON"),
        ("delta.acc50.value", 1e300, "rows['q'].delta.acc50.value: must be a number from -1 to 1, not 1e+300"),
        ("delta.acc50.low", None, "rows['q'].delta.acc50.low: must be a number from -1 to 1, not null"),
        ("delta.acc50.high", -1.0, "rows['q'].delta.acc50: its low "),
        ("delta.acc50.images", KeyError, "rows['q'].delta.acc50.images: is missing"),
        ("ground.acc50", "1.0", "rows['q'].ground.acc50: must be a number from 0 to 1, not '1.0'"),
        ("ground.acc50", True, "rows['q'].ground.acc50: must be a number from 0 to 1, not true"),
        ("size_bytes", -5, "rows['q'].size_bytes: must be a whole number from 0"),
        ("size_bytes", int("9" * 400), "a whole number of 400 digits"),
        ("stages.total.p95", None, "rows['q'].stages.total.p95: must be a number from 0"),
        ("stages.total.p95", -1, "rows['q'].stages.total.p95: must be a number from 0"),
        ("status", "great", "rows['q'].status: must be 'ok' or 'failed', not 'great'"),
        ("status", KeyError, "rows['q'].status: must be 'ok' or 'failed', not null"),
        ("name", KeyError, "rows[1].name: is missing"),
        ("name", "base", "rows['base']: two rows have this name"),
        ("name", "a\x1b[31m", "not the name of a row"),
        ("baseline", True, "baseline: is 'base', but the rows marked as baseline are ['base', 'q']"),
        ("ground", [], "rows['q'].ground: must be an object, not []"),
        ("/rows", [], "rows: there are none"),
        ("/rows", None, "not the results of a measurement"),
        ("/rows", [None], "rows[0]: must be an object, not null"),
        ("/created", KeyError, "created: is missing"),
        ("/schema", True, "schema True"),
        ("/statistics.level", 1e-9, "statistics.level: must be a number from 0.5 to 0.9999, not 1e-09"),
        ("/options", KeyError, "'machine', 'versions' and 'options' belong together"),
    ],
)
def test_a_file_changed_by_hand_is_refused_by_row_and_field(
    tmp_path: Path, place: str, value: object, message: str
) -> None:
    (tmp_path / "r.json").write_text(damage(lost(1, 5), place, value))
    done = gate(tmp_path / "r.json", "--max-drop", 50, "--max-size-mb", 30, "--junit", tmp_path / "j.xml")
    assert done.exit_code == 2, done.output
    assert f"{tmp_path / 'r.json'}" in done.stderr and message in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_deep_nesting_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text('{"rows": [' + "[" * 100_000)
    assert "nested too deep" in gate(tmp_path / "deep.json", "--max-drop", 1).stderr
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(lost(0, 400).to_dict()).encode())
    assert gate(tmp_path / "bom.json", "--max-drop", 5).exit_code == 0


def write(path: Path, found: Results) -> Path:
    path.write_text(json.dumps(found.to_dict()))
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
        ([], "give at least one limit"),
        (["--metric", "miou"], "--metric needs --max-drop"),
        (["--max-drop", "1", "--row", "Q"], "no row 'Q' in the results\nhint: rows: base, q"),
        (["--max-drop", "1", "--row", "base"], "base is the baseline, which cannot drop"),
        (["--max-drop", "1", "--metric", "vqa"], "q: no difference of vqa in the results"),
        (["--max-drop", "1", "--row", "bas"], "no row 'bas' in the results\nhint: did you mean 'base'?"),
        (["--max-drop", "1", "--metric", "acc@.5"], "Did you mean 'acc@0.5'?"),
        (["--max-gpu-mb", "1"], "q: GPU memory was not measured"),
        (["--max-drop", "-1"], "-1.0 must be at least 0"),
        (["--max-drop", "nan"], "nan is not a finite number"),
        (["--max-drop", "1e999"], "inf is not a finite number"),
        (["--max-p95-ms", "inf"], "inf is not a finite number"),
        (["--min", "acc@0.5=nan"], "nan is not a finite number"),
        (["--min", "acc@0.5"], "'acc@0.5' must look like METRIC=PERCENT"),
        (["--min", "acc@0.5=101"], "101"),
        (["--min", "acc=1"], "'acc' is not one of"),
        (["--min", "vqa=1"], "q: no vqa in the results"),
        (["--min", "miou=1", "--min", "miou=2"], "'miou' is given twice"),
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
        ('{"rows": [], "data": {}, "schema": true}', "schema True, this version reads schema 1"),
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
    options = {param.name: param for param in verb.command.params}
    assert list(options["metrics"].type.choices) == list(DROPS)  # type: ignore[attr-defined]
    assert f"one of {', '.join(METRICS)}." in str(options["floors"].help)


def test_a_bundle_that_nothing_vouches_for_fails() -> None:
    """Whatever it scores, unless that is allowed; bundles that were checked, and checkpoints, have nothing to say."""
    found = lost(0, 400)
    for told, outcome in (("none", "fail"), ("fast", "pass"), (None, "pass")):
        rows = tuple(replace(row, self_check=told) if isinstance(row, Measured) else row for row in found.rows)
        measured = replace(found, rows=rows)
        assert worst(check_rows(measured, floors={"acc@0.5": 80.0})) == outcome
        assert worst(check_rows(measured, floors={"acc@0.5": 80.0}, unchecked=True)) == "pass"
