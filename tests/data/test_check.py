"""The check finds every planted fault at its lines, all in one run, and invents none on clean data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from data.broken import MAX_PIXELS, MIN_PIXELS, Writer, against, clean
from edgetune.cli import cli
from edgetune_data.check import Report, check, gather
from edgetune_data.model_view import ModelView
from edgetune_data.settings import CheckLimits

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *map(str, arguments)], prog_name="edgetune")


def look(path: Path, *others: Path, **limits: Any) -> Report:
    return check(gather(path, model=ModelView.of_checkpoint(TINY), limits=CheckLimits(**limits)), others)


def found(report: Report) -> dict[str, set[str]]:
    """The lines that each rule is told about."""
    lines: dict[str, set[str]] = {}
    for finding in report.findings:
        lines.setdefault(finding.rule, set()).update(finding.lines)
    return lines


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clean(tmp_path_factory.mktemp("check") / "clean").write("train.jsonl")


def test_every_planted_fault_is_found_where_it_is_and_nothing_else(damaged: tuple[Writer, Path]) -> None:
    writer, path = damaged
    assert found(look(path)) == dict(writer.faults)


def test_nothing_is_invented_on_a_clean_set(sound: Path) -> None:
    report = look(sound)
    assert report.findings == ()
    assert report.records == len(sound.read_text().splitlines()) == report.images


def test_the_family_and_its_limits_see_what_the_checkpoint_sees(damaged: tuple[Writer, Path]) -> None:
    _, path = damaged
    model = ModelView.of_family("qwen3_vl", MIN_PIXELS, MAX_PIXELS)
    assert found(check(gather(path, model=model))) == found(look(path))


def test_without_a_model_the_rules_that_need_one_say_so(damaged: tuple[Writer, Path]) -> None:
    writer, path = damaged
    report = check(gather(path))
    needy = {"control-token", "tiny-box", "low-resolution"}
    assert needy <= set(report.skipped) and "leak" in report.skipped and "private" in report.skipped
    rest = {rule: lines for rule, lines in writer.faults.items() if rule not in needy}
    # The strip is a picture that no model takes, whichever it is.
    assert found(report) == rest


def test_pictures_of_another_split_are_found(sound: Path) -> None:
    report = look(sound, against(sound.parent))
    assert {finding.rule for finding in report.findings} == {"leak"}
    told = {finding.image.name: finding.message for finding in report.findings if finding.image}
    assert set(told) == {"train_00001.jpg", "train_00003.jpg"}
    assert "is the same picture as" in told["train_00001.jpg"]
    assert "of 64 bits from leak.jpg" in told["train_00003.jpg"]


def test_labels_that_are_classes_are_weighed(tmp_path: Path) -> None:
    writer = clean(tmp_path / "set")
    lines = [json.loads(line) for line in writer.lines]
    counted = Writer(writer.folder)
    for index, line in enumerate(line for line in lines if line.get("bbox")):
        rare = index == 7
        place = counted.add({**line, "label": "crane" if rare else "cup"})
        if rare:
            counted.plant("rare-label", place)
    assert found(look(counted.write("labels.jsonl"))) == counted.faults


def test_every_error_is_told_with_its_line_and_the_exit_code_is_1(damaged: tuple[Writer, Path]) -> None:
    writer, path = damaged
    done = run(path, "--checkpoint", TINY)
    assert done.exit_code == 1
    for rule in ("line", "picture", "box", "control-token"):
        for line in writer.faults[rule]:
            assert f"error: {path}:{line}: " in done.stdout
    assert f"{path}: {len(writer.lines)} records" in done.stdout


def test_json_has_every_finding(damaged: tuple[Writer, Path]) -> None:
    writer, path = damaged
    done = run(path, "--checkpoint", TINY, "--json")
    told = json.loads(done.stdout)
    lines: dict[str, set[str]] = {}
    for finding in told["findings"]:
        lines.setdefault(finding["rule"], set()).update(finding["lines"])
    assert lines == dict(writer.faults)
    assert told["errors"] == sum(finding["level"] == "error" for finding in told["findings"]) > 0
    assert told["counts"]["picture"] == len(writer.faults["picture"])


def test_exit_codes(sound: Path, damaged: tuple[Writer, Path], tmp_path: Path) -> None:
    assert run(sound).exit_code == 0
    warned = ("--against", against(sound.parent))
    assert run(sound, *warned).exit_code == 0
    assert run(sound, *warned, "--strict").exit_code == 1
    assert run(damaged[1]).exit_code == 1
    missing = run(tmp_path / "nothing.jsonl")
    assert missing.exit_code == 2 and "no such data file" in missing.stderr
    unknown = run(sound, "--vague", "(")
    assert unknown.exit_code == 2 and "--vague '('" in unknown.stderr


def test_thresholds_decide(sound: Path) -> None:
    rules = {"min_box": 3.0, "max_blur": 0.1, "max_enlarge": 0.7, "near": 20, "vague": ("the subject of .*",)}
    report = look(sound, **rules)
    expected = {"tiny-box", "blurry", "low-resolution", "near-duplicate", "vague-phrase"}
    assert {finding.rule for finding in report.findings} == expected
    counts = [len(look(sound, max_blur=blur).of("blurry")) for blur in (0.2, 0.3, 0.4)]
    assert counts[0] > counts[1] > counts[2]


def test_other_formats_are_checked_too(tmp_path: Path) -> None:
    Image.effect_noise((200, 100), 80).save(tmp_path / "desk.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "iscrowd": 0, "area": 2500}
    value = {
        "images": [{"id": 1, "file_name": "desk.png", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [box],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(value))
    report = check(gather(path))
    assert {finding.rule for finding in report.findings} == {"vague-phrase"}
    assert report.findings[0].source.startswith(f"{path}#")


def test_long_lists_of_boxes_are_compared_number_by_number(tmp_path: Path) -> None:
    # 10,000 boxes, as many as a record may have: their overlaps would be a hundred million numbers.
    boxes = [[x % 100, x // 100, x % 100 + 20, x // 100 + 15] for x in range(10_000)]
    Image.effect_noise((160, 120), 80).convert("RGB").save(tmp_path / "a.png")
    values = [boxes, boxes[::-1], boxes[:-1]]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"image": "a.png", "text": "cup", "bbox": value}) + "\n" for value in values))
    [finding] = check(gather(path)).of("ambiguous-phrase")
    assert finding.lines == ("1", "3")
