"""Joining results: one comparison with one baseline, or a clear refusal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from answers import Row, ground, part, results, vqa
from edgetune.cli import cli
from edgetune_bench.folder import read_answers, read_results, write
from edgetune_runtime.manifest import verify_files

SHARES = {"merged": [1.0, 0.9, 1.0, 0.8], "int4": [1.0, 0.9, 0.5, 0.2], "fp32": [1.0, 0.9, 1.0, 0.8]}


def run(name: str, folder: str) -> list[Row]:
    """A model's answers; pictures lie in a folder of their own on every machine."""
    return [ground(f"{folder}/{i}.png", part(share), number=i) for i, share in enumerate(SHARES[name])]


def desk(path: Path, rows: list[str], *, baseline: str | None) -> Path:
    """The folder that `edgetune bench` writes."""
    found, answers = results({name: run(name, "/desk") for name in rows}, baseline=baseline)
    path.mkdir()
    write(path, found, answers, report=False)
    return path


def device(path: Path, rows: list[str], *, baseline: str | None = None, **changes: Any) -> Path:
    """The file that `edgetune-run bench` writes, with changes by the dotted names of its fields."""
    measured, answers = results({name: run(name, "/robot") for name in rows}, baseline=baseline)
    found = measured.to_dict()
    for row in found["rows"]:
        row["answers"] = [answer.to_dict() for answer in answers[row["name"]]]
    for place, value in changes.items():
        *parents, last = place.split("__")
        inner = found
        for key in parents:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(found))
    return path


def merge(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", "merge", *map(str, arguments)])


def test_a_device_without_a_baseline_is_compared_with_the_desks(tmp_path: Path) -> None:
    first = desk(tmp_path / "desk", ["merged", "int4"], baseline="merged")
    second = device(tmp_path / "jetson.json", ["int4", "fp32"])
    output = tmp_path / "out"
    done = merge(first, second, "--output", output, "--json")
    assert done.exit_code == 0, done.output
    results = read_results(output)
    found = results.to_dict()
    assert json.loads(done.stdout) == found
    assert [(row["name"], row["machine"], row["baseline"]) for row in found["rows"]] == [
        ("merged", "desk", True),
        ("int4@desk", "desk", False),
        ("int4@jetson", "jetson", False),
        ("fp32", "jetson", False),
    ]
    _, here, there, exact = found["rows"]
    assert "answers" not in there
    # Pictures lie elsewhere on the other machine, and are still the same pictures.
    assert here["delta"] == there["delta"]
    assert exact["delta"]["drift"]["iou"] == 1.0
    assert there["delta"]["acc50"]["value"] == -0.25
    assert found["baseline"] == "merged"
    assert set(found["machines"]) == {"desk", "jetson"}
    assert found["inputs"]["row int4@jetson"]["sha256"] == "int4" * 8
    verify_files(output)
    assert "jetson" in (output / "report.html").read_text()
    assert "| machine |" in (output / "table.md").read_text()
    assert read_answers(output, results)["fp32"][0].image == "/robot/0.png"


def test_the_same_baseline_on_both_machines_becomes_a_row_of_its_own(tmp_path: Path) -> None:
    first = desk(tmp_path / "desk", ["merged", "int4"], baseline="merged")
    second = device(tmp_path / "b.json", ["merged", "fp32"], baseline="merged")
    assert merge(first, f"robot={second}", "--output", tmp_path / "out").exit_code == 0
    found = read_results(tmp_path / "out")
    assert [row.name for row in found.rows] == ["merged@desk", "int4", "merged@robot", "fp32"]
    (again,) = [row.delta for row in found.ran if row.name == "merged@robot"]
    assert again is not None and again.drift is not None and again.drift.worst.iou == 1.0


def test_an_unchanged_join_is_kept_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    first = device(tmp_path / "a.json", ["merged", "int4"], baseline="merged")
    arguments = (first, "--output", tmp_path / "out")
    assert merge(*arguments, "--dry-run").exit_code == 0
    assert not (tmp_path / "out").exists()
    assert merge(*arguments).exit_code == 0
    created = read_results(tmp_path / "out").created
    assert merge(*arguments).exit_code == 0
    assert read_results(tmp_path / "out").created == created


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs__data__sha256": "ee" * 32},
            "(sha256 of the data file) differs: cdcdcdcdcdcd, eeeeeeeeeeee",
        ),
        ({"data__images_sha256": "ee" * 32}, "the pictures (their sha256) differs"),
        ({"data__records": 3}, "b.json: int4: 4 answers where there are 3 records"),
        ({"options__max_new_tokens": 64}, "the longest answer, in tokens differs: 128, 64"),
        ({"schema": 7}, "schema 7"),
        ({"machines": {}}, "is joined from several machines already"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    first = desk(tmp_path / "desk", ["merged", "int4"], baseline="merged")
    done = merge(first, device(tmp_path / "b.json", ["int4"], **changes), "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_baseline_is_refused(tmp_path: Path) -> None:
    first = desk(tmp_path / "desk", ["merged", "int4"], baseline="merged")
    done = merge(first, device(tmp_path / "b.json", ["fp32", "int4"], baseline="fp32"), "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "compares with 'merged'" in done.stderr and "with 'fp32', which is another model" in done.stderr


@pytest.mark.parametrize("where", ["a.json", "a/results.json"])
def test_two_machines_of_one_name_are_refused(tmp_path: Path, where: str) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent / where).parent.mkdir(parents=True)
        device(tmp_path / parent / where, ["int4"])
    done = merge(tmp_path / "x" / where, tmp_path / "y" / where, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "two machines would be called 'a'\nhint: name them: MACHINE=RESULTS" in done.stderr


def test_a_folder_without_its_predictions_is_refused(tmp_path: Path) -> None:
    first = desk(tmp_path / "desk", ["merged", "int4"], baseline="merged")
    (first / "predictions" / "int4.jsonl").unlink()
    done = merge(first, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "int4.jsonl: missing, so the answers of int4 are unknown\nhint: copy the whole folder" in done.stderr


def changed(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """A device's file whose answers of `int4` were changed, in place or for what `change` returns."""
    device(path, ["merged", "int4"], baseline="merged")
    found = json.loads(path.read_text())
    row = found["rows"][1]
    returned = change(row["answers"])
    row["answers"] = row["answers"] if returned is None else returned
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda answers: answers.reverse(), "int4: answer 1 is of d.jsonl:3 'thing 3', not of d.jsonl:0 'thing 0'"),
        (lambda answers: answers[:3], "int4: 3 answers where there are 4 records"),
        (lambda answers: answers[2].update(truth=[[0, 0, 1, 1]]), "int4: answer 3 has another truth"),
        (lambda answers: answers[2].update(boxes=[[1, 2, 3]]), "answers[2].boxes[0]: must hold 4 values, not 3"),
        (lambda answers: answers[2].update(scores=[0.5, 0.5]), "answers[2]: 2 scores for 1 boxes"),
        (lambda answers: answers[2]["timings"].update(total=-1), "answers[2].timings.total: must be a number from 0"),
        (lambda answers: [*answers[:3], vqa("3", "red", [], 3)], "answers[3]: expected: there are no accepted answers"),
        (lambda answers: answers[2].update(kind="dance"), "answers[2].kind: must be 'ground' or 'vqa', not 'dance'"),
        (lambda answers: [5], "rows['int4'].answers[0]: must be an object, not 5"),
        (lambda answers: [{}], "rows['int4'].answers[0].kind: must be 'ground' or 'vqa', not null"),
        (lambda answers: "none", "rows['int4'].answers: must be a list, not 'none'"),
    ],
)
def test_answers_that_are_not_those_of_the_records_are_refused(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], message: str
) -> None:
    done = merge(changed(tmp_path / "a.json", change), "--output", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert f"{tmp_path / 'a.json'}: " in done.stderr and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_figures_are_computed_from_the_answers_and_not_taken_from_the_file(tmp_path: Path) -> None:
    """Two boxes moved away, and the file's own figures left as they were."""

    def move(answers: list[dict[str, Any]]) -> None:
        for answer in answers[:2]:
            answer["boxes"] = [[50, 50, 60, 60]]

    file = changed(tmp_path / "a.json", move)
    assert json.loads(file.read_text())["rows"][1]["ground"]["acc50"] == 0.75
    assert merge(file, "--output", tmp_path / "out").exit_code == 0
    row = read_results(tmp_path / "out").ran[1]
    assert row.ground is not None and row.delta is not None and row.delta.acc50 is not None
    assert (row.ground.acc50, row.delta.acc50.value) == (0.25, -0.75)
    said = [json.loads(line) for line in (tmp_path / "out" / "predictions" / "int4.jsonl").read_text().splitlines()]
    assert [answer["iou"] for answer in said] == [0.0, 0.0, 0.5, pytest.approx(0.2)]


def test_a_broken_line_of_predictions_is_named(tmp_path: Path) -> None:
    first = desk(tmp_path / "desk", ["merged", "int4"], baseline="merged")
    file = first / "predictions" / "int4.jsonl"
    lines = file.read_text().splitlines()
    for line, message in (("{", "int4.jsonl:2: not valid JSON"), ("null", "int4.jsonl:2: must be an object, not null")):
        file.write_text("\n".join([lines[0], line, *lines[2:]]))
        done = merge(first, "--output", tmp_path / "out")
        assert done.exit_code == 2
        assert message in done.stderr


def test_only_pictures_that_were_measured_are_shown(tmp_path: Path) -> None:
    """A file from elsewhere may name any picture of this machine; the data's sha256 says which ones it may show."""
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (60 * number, 90, 120)).save(path)
    measured = hashlib.sha256("".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths).encode())

    def run(shares: list[float]) -> list[Row]:
        return [
            ground(str(path), part(share), number=n) for n, (path, share) in enumerate(zip(paths, shares, strict=True))
        ]

    found, answers = results({"merged": run([1.0] * 4), "int4": run([1.0, 0.9, 0.5, 0.2])}, baseline="merged")
    text = found.to_dict()
    text["data"]["images_sha256"] = measured.hexdigest()
    for row in text["rows"]:
        row["answers"] = [answer.to_dict() for answer in answers[row["name"]]]
    (tmp_path / "a.json").write_text(json.dumps(text))
    assert merge(tmp_path / "a.json", "--output", tmp_path / "shown").exit_code == 0
    assert "data:image/jpeg" in (tmp_path / "shown" / "report.html").read_text()

    Image.new("RGB", (40, 30), "red").save(tmp_path / "private.png")
    for row in text["rows"]:
        row["answers"][3]["image"] = str(tmp_path / "private.png")
    (tmp_path / "b.json").write_text(json.dumps(text))
    assert merge(tmp_path / "b.json", "--output", tmp_path / "hidden").exit_code == 0
    page = (tmp_path / "hidden" / "report.html").read_text()
    assert "data:image/jpeg" not in page and "the pictures that were measured are not on this machine" in page
    command = ["eval", "export", str(tmp_path / "b.json"), "--format", "vlmevalkit", "--output", str(tmp_path / "x")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2
    assert "the pictures that were measured are not on this machine" in done.stderr


def test_the_verb_and_its_subcommand_have_help_of_their_own() -> None:
    both = CliRunner().invoke(cli, ["bench", "--help"]), CliRunner().invoke(cli, ["bench", "merge", "--help"])
    assert [done.exit_code for done in both] == [0, 0]
    assert "[NAME=]TARGET..." in both[0].stdout
    assert "[MACHINE=]RESULTS..." in both[1].stdout
    assert "--dry-run" in both[1].stdout
