"""`edgetune tune-budget` on a real bundle, and how an area is picked from what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from answers import Row, ground, part, results
from edgetune.cli import cli
from edgetune_bench.budget import choose, ladder, tried
from edgetune_bench.gate import check_rows
from edgetune_runtime import Session
from edgetune_runtime.bench.results import Measured, Results
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.manifest import verify_files
from edgetune_runtime.records import read_records

SMALL = ("--max-new-tokens", "8", "--threads", "1", "--warmup", "0")
SPEC = ImageSpec(16, 2, 2, 4096, 65_536, (0.5,) * 3, (0.5,) * 3, 1 / 255, 3)


def edgetune(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def measured(good: dict[int | None, int], count: int = 400) -> Results:
    """Rows at areas, of which so many answers of `count` are right; None is the baseline."""
    runs: dict[str, list[Row] | str] = {
        "own" if area is None else f"own@{area}": [
            ground(f"{number}", part(0.9 if number < hits else 0.1), number=number) for number in range(count)
        ]
        for area, hits in good.items()
    }
    found, _ = results(runs, baseline="own")
    from dataclasses import replace

    rows = []
    for row, area in zip(found.rows, good, strict=True):
        assert isinstance(row, Measured)
        rows.append(replace(row, max_pixels=area))
    return replace(found, rows=tuple(rows))


def test_the_smallest_area_within_the_drop_is_picked_with_the_interval_of_the_gate() -> None:
    found = measured({None: 360, 40_000: 358, 20_000: 357, 10_000: 300})
    steps = tried(found, "acc@0.5", max_drop=3.0)
    assert [(one.row.max_pixels, one.check.outcome) for one in steps] == [
        (40_000, "pass"),
        (20_000, "pass"),
        (10_000, "fail"),
    ]
    chosen = choose(steps)
    assert chosen is not None and chosen.row.max_pixels == 20_000
    (_, gated) = check_rows(found, rows=["own@20000"], max_drop=3.0)
    assert chosen.check == gated


def test_an_area_below_one_that_is_not_within_the_drop_is_not_picked() -> None:
    steps = tried(measured({None: 360, 40_000: 358, 20_000: 300, 10_000: 360}), "acc@0.5", max_drop=3.0)
    assert [one.check.outcome for one in steps] == ["pass", "fail", "pass"]
    chosen = choose(steps)
    assert chosen is not None and chosen.row.max_pixels == 40_000
    assert choose(steps[1:]) is None


def test_the_ladder_has_whole_tokens_below_what_the_pictures_take(data: Path) -> None:
    images = {record.image for record in read_records(data)}
    # 160x120, 90x200 and 128x128 pixels become 160x128, 96x192 and 128x128: 20,480 is the most
    areas = ladder(SPEC, images, Path("bundle"))
    assert areas == (14_336, 10_240, 7_168, 5_120)  # 20,480 / √2, 2, 2√2, 4 in tokens of 1,024; 3,620 is under 4,096


def test_pictures_that_take_the_least_already_are_refused(data: Path) -> None:
    spec = SPEC.bounded(min_pixels=60_000)
    with pytest.raises(InputError, match="bundle: the pictures take 65,536 pixels, and none of less than 60,000"):
        ladder(spec, {record.image for record in read_records(data)}, Path("bundle"))


@pytest.fixture(scope="module")
def run(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Result]:
    """Three pictures show no difference of less than 39 points, so the limit is wide."""
    folder = tmp_path_factory.mktemp("budget")
    arguments = ("--max-pixels", "12k,8192", "--max-drop", 50, "--tuned", folder / "tuned", *SMALL)
    done = edgetune("tune-budget", bundle, "--data", data, "--output", folder / "out", "--json", *arguments)
    assert done.exit_code == 0, done.stderr
    return folder, json.loads(done.stdout), done


def test_an_area_is_picked_and_the_results_are_written(run: tuple[Path, dict[str, Any], Result], bundle: Path) -> None:
    folder, told, _ = run
    assert told["max_pixels"] == 8192
    assert [(one["max_pixels"], one["outcome"]) for one in told["tried"]] == [(12_000, "pass"), (8192, "pass")]
    rows = json.loads((folder / "out" / "results.json").read_text())["rows"]
    assert [(row["name"], row["baseline"]) for row in rows] == [
        (bundle.name, True),
        (f"{bundle.name}@12k", False),
        (f"{bundle.name}@8192", False),
    ]
    assert "Image-token budget" in (folder / "out" / "report.html").read_text()
    verify_files(folder / "out")


def test_the_tuned_bundle_answers_as_the_bound_does(
    run: tuple[Path, dict[str, Any], Result], bundle: Path, data: Path
) -> None:
    tuned = run[0] / "tuned"
    verify_files(tuned)
    smaller = Bundle.load(tuned)
    assert isinstance(smaller.spec, ImageSpec) and smaller.spec.max_pixels == 8192
    assert smaller.limits.max_image_tokens == 8
    config = json.loads((tuned / "preprocessor_config.json").read_text())
    assert (config["max_pixels"], config["size"]["longest_edge"]) == (8192, 8192)
    with Session.load(tuned, threads=1) as one, Session.load(bundle, threads=1, max_pixels=8192) as other:
        for record in read_records(data):
            answers = [session.answer(record.image, record.text, max_new_tokens=8) for session in (one, other)]
            assert answers[0] == answers[1]


def test_too_few_records_are_exit_code_4_and_nothing_is_measured_again(
    run: tuple[Path, dict[str, Any], Result], bundle: Path, data: Path
) -> None:
    output = run[0] / "out"
    before = (output / "results.json").read_bytes()
    arguments = ("--max-pixels", "12k,8192", "--max-drop", 1, *SMALL)
    done = edgetune("tune-budget", bundle, "--data", data, "--output", output, *arguments)
    assert done.exit_code == 4
    assert "kept" in done.stderr and (output / "results.json").read_bytes() == before
    assert f"no area is within the limit: {bundle.name}@12k, drop of acc@0.5" in done.stderr


def test_one_line_says_what_was_picked(run: tuple[Path, dict[str, Any], Result], bundle: Path, data: Path) -> None:
    arguments = ("--max-pixels", "12k,8192", "--max-drop", 50, *SMALL)
    done = edgetune("tune-budget", bundle, "--data", data, "--output", run[0] / "out", *arguments)
    [line] = [line for line in done.stdout.splitlines() if "--max-pixels" in line]
    assert line.startswith("the smallest within 50 points of acc@0.5: --max-pixels 8192, with a drop of 0.00 points [")
    page = (Path(__file__).resolve().parents[2] / "docs" / "tune-budget.md").read_text()
    header, shown = (next(line for line in text.splitlines() if "max pixels" in line) for text in (done.stdout, page))
    assert re.split(" {2,}", header) == re.split(" {2,}", shown.strip())
    assert line.partition(":")[0].replace("50 points", "2 points") in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--max-pixels", "200q"), "'200q' is not an area in pixels, such as 400000, 400k or 1.5M"),
        (("--max-pixels", "1M"), "max_pixels 1000000 is over the 65536 that it was exported for"),
        (("--max-pixels", "100"), "max_pixels 100 is less than one image token"),
        (("--max-drop", "-1"), "-1.0 must be at least 0"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    bundle: Path, data: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    limit = () if "--max-drop" in arguments else ("--max-drop", 1)
    done = edgetune("tune-budget", bundle, "--data", data, "--output", tmp_path / "out", *limit, *arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(bundle: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--max-drop", 1, "--output", tmp_path / "out", "--dry-run")
    done = edgetune("tune-budget", bundle, "--data", data, *arguments)
    assert done.exit_code == 0
    assert "would be written" in done.stderr
    assert list(tmp_path.iterdir()) == []
