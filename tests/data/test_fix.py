"""The cleaned copy: what is dropped and mended, what is not, and that nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from data.broken import Writer, against
from edgetune.cli import cli
from edgetune_runtime.records import read_entries

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *map(str, arguments)], prog_name="edgetune")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_safe_fixes_drop_what_cannot_be_read_and_what_is_there_twice(
    damaged: tuple[Writer, Path], tmp_path: Path
) -> None:
    writer, path = damaged
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    done = run(path, "--fix", "--output", tmp_path / "out")
    assert done.exit_code == 1  # the boxes are still wrong
    changes = lines(tmp_path / "out" / "changes.jsonl")
    twice = sorted(writer.faults["duplicate-record"], key=int)[1:]
    dropped = writer.faults["line"] | writer.faults["picture"] | set(twice)
    assert {change["source"].rpartition(":")[2] for change in changes} == dropped
    assert {change["action"] for change in changes} == {"dropped"}
    assert all(change["reason"] for change in changes)
    kept = lines(tmp_path / "out" / "data.jsonl")
    expected = [json.loads(line) for number, line in enumerate(writer.lines, start=1) if str(number) not in dropped]
    assert [{**value, "image": Path(value["image"]).name} for value in kept] == [
        {**value, "image": Path(value["image"]).name} for value in expected
    ]
    assert all((tmp_path / "out" / value["image"]).is_file() for value in kept)
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before


def test_everything_asked_for_leaves_a_set_that_loads(damaged: tuple[Writer, Path], tmp_path: Path) -> None:
    _, path = damaged
    done = run(path, "--fix", "unreadable,duplicates,swap,boxes", "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert "after --fix unreadable,duplicates,swap,boxes: " in done.stdout and " 0 errors" in done.stdout
    entries = read_entries(tmp_path / "out" / "data.jsonl")
    changes = lines(tmp_path / "out" / "changes.jsonl")
    swapped = [change for change in changes if change["fix"] == "swap"]
    assert [change["reason"] for change in swapped] == [
        "[90, 20, 20, 90] is now [20, 20, 90, 90]",
        "[20, 90, 90, 20] is now [20, 20, 90, 90]",
    ]
    assert len([entry for entry in entries if "kettle" in getattr(entry, "text", "")]) == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["result"]["kept"] == len(entries) and manifest["result"]["changes"] == len(changes)


def test_boxes_off_by_rounding_are_cut_and_others_are_not(tmp_path: Path) -> None:
    Image.effect_noise((100, 80), 60).save(tmp_path / "a.png")
    writer = Writer(tmp_path)
    writer.add({"image": "a.png", "text": "mug", "bbox": [[-0.4, 10, 50, 81], [60, 60, 90, 80]], "label": ["a", "b"]})
    writer.add({"image": "a.png", "text": "jug", "bbox": [10, 10, 102, 70]})
    path = writer.write("data.jsonl")
    done = run(path, "--fix", "clip", "--output", tmp_path / "out")
    assert done.exit_code == 1 and "leaves the 100x80 picture by 2 px" in done.stdout
    first, second = lines(tmp_path / "out" / "data.jsonl")
    assert first["bbox"] == [[0, 10, 50, 80], [60, 60, 90, 80]] and first["label"] == ["a", "b"]
    assert second["bbox"] == [10, 10, 102, 70]


def test_leaks_are_dropped_where_they_were_looked_for(damaged: tuple[Writer, Path], tmp_path: Path) -> None:
    _, path = damaged
    refused = run(path, "--fix", "unreadable,leaks", "--output", tmp_path / "out")
    assert refused.exit_code == 2 and "--fix leaks needs --against" in refused.stderr
    other = against(path.parent)
    run(path, "--against", other, "--fix", "unreadable,leaks", "--output", tmp_path / "out")
    leaks = [change for change in lines(tmp_path / "out" / "changes.jsonl") if change["fix"] == "leaks"]
    assert [change["source"].rpartition(":")[2] for change in leaks] == ["2", "4"]
    again = run(tmp_path / "out", "--against", other, "--json")
    assert "leak" not in json.loads(again.stdout)["counts"]


def test_dialogues_and_origins_survive_the_move(tmp_path: Path) -> None:
    Image.effect_noise((100, 80), 60).save(tmp_path / "a.png")
    origin = {"image": "whole/a.png", "crop": [10, 20, 110, 100]}
    turns = [
        {"role": "user", "content": "<image><image>Where is <ref-object>?"},
        {"role": "assistant", "content": "At <bbox>, and <bbox> beside it."},
    ]
    objects = {"ref": ["the mug"], "bbox": [[50, 10, 20, 40], [60, 60, 90, 80]], "image_id": [1, 0]}
    value = {"messages": turns, "images": ["a.png", "a.png"], "objects": objects, "meta": {"origin": origin, "by": 1}}
    writer = Writer(tmp_path)
    writer.add(value)
    run(writer.write("data.jsonl"), "--fix", "swap", "--output", tmp_path / "deep" / "out")
    [kept] = lines(tmp_path / "deep" / "out" / "data.jsonl")
    assert kept["objects"] == {**objects, "bbox": [[20, 10, 50, 40], [60, 60, 90, 80]]}
    assert kept["messages"] == turns and kept["images"] == ["../../a.png"] * 2
    assert kept["meta"] == {"origin": {**origin, "image": "../../whole/a.png"}, "by": 1}


def test_an_unchanged_check_is_kept_and_a_changed_picture_is_not(tmp_path: Path) -> None:
    Image.effect_noise((100, 80), 60).save(tmp_path / "a.png")
    writer = Writer(tmp_path)
    writer.add({"image": "a.png", "text": "mug", "bbox": [10, 10, 50, 50]})
    path = writer.write("data.jsonl")
    command = (path, "--output", tmp_path / "out")
    assert "written" in run(*command).stderr
    assert "unchanged" in run(*command).stderr
    Image.effect_noise((100, 80), 70).save(tmp_path / "a.png")
    assert "written" in run(*command).stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--fix",), "--fix, --force and --dry-run need --output"),
        (("--fix", "dupes", "--output", "out"), "unknown fix 'dupes'"),
        (("--fix", "duplicates", "--output", "out"), "cannot be read, so it cannot be copied"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("nothing\n")
    done = run("data.jsonl", *arguments)
    assert done.exit_code == 2 and message in done.stderr and not Path("out").exists()
