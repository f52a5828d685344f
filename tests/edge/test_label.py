"""`edgetune label`: proposals are the bundle's own answers, a killed run goes on, shards join, and a round learns."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgetune.cli import cli
from edgetune_core.adapter import Adapter
from edgetune_runtime import Session
from edgetune_runtime.manifest import read_manifest, sha256_file
from processes import start

PHRASES = ("the banjo", "the crystal ball")


def label(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["label", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(path: Path) -> dict[str, Any]:
    return {line["image"]: line for line in lines(path / "proposals.jsonl")}


@pytest.fixture(scope="module")
def folder(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of the tiny model's world."""
    target = tmp_path_factory.mktemp("label") / "pictures"
    target.mkdir()
    for path in sorted((tiny_scenes.parent / "images").iterdir())[:8]:
        shutil.copyfile(path, target / path.name)
    return target


@pytest.fixture(scope="module")
def whole(folder: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Proposals for all of them; not to be changed."""
    output = tmp_path_factory.mktemp("label") / "whole"
    result = label(folder, *PHRASES, "--bundle", tiny_bundle, "--output", output)
    assert result.exit_code == 0, result.stderr
    return output


def test_proposals_are_what_the_bundle_answers(folder: Path, whole: Path, tiny_bundle: Path) -> None:
    unsure = {}
    with Session.load(tiny_bundle) as session:
        for name, line in answers(whole).items():
            said = [session.answer(folder / name, session.request(phrase)) for phrase in PHRASES]
            assert [answer["status"] for answer in line["answers"]] == [one.status for one in said]
            for written, one in zip(line["answers"], said, strict=True):
                assert written["text"] == one.text
                assert [tuple(box) for box in written["boxes"]] == [
                    pytest.approx(found.box, abs=1e-3) for found in one.detections
                ]
                scores = [found.score for found in one.detections] or [one.refusal_score]
                assert None not in scores
                assert written["uncertainty"] == pytest.approx(1 - min(map(float, map(str, scores))), abs=1e-5)
            unsure[name] = sorted((answer["uncertainty"] for answer in line["answers"]), reverse=True)
    assert len(unsure) == 8
    order = (whole / "pictures.txt").read_text().splitlines()
    tasks = json.loads((whole / "labelstudio.json").read_text())
    assert [task["data"]["image"].rpartition("/")[2] for task in tasks] == order
    manifest = read_manifest(whole)
    assert manifest["inputs"]["bundle"]["path"] == str(tiny_bundle)
    assert (manifest["result"]["pictures"], manifest["settings"]["phrases"]) == (8, list(PHRASES))


def test_the_order_is_that_of_uncertainty_where_it_is_asked_for(folder: Path, whole: Path, tmp_path: Path) -> None:
    result = label("merge", folder, whole, "--output", tmp_path / "out", "--order", "uncertain", "--first", "5")
    assert result.exit_code == 0, result.stderr
    unsure = {name: [one["uncertainty"] for one in line["answers"]] for name, line in answers(whole).items()}
    expected = sorted(sorted(unsure), key=lambda name: sorted(unsure[name], reverse=True), reverse=True)[:5]
    assert (tmp_path / "out" / "pictures.txt").read_text().splitlines() == expected
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["images"]) == 5
    assert answers(tmp_path / "out") == answers(whole)


def test_unchanged_proposals_are_kept_and_a_new_picture_is_noticed(
    folder: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    some = tmp_path / "some"
    some.mkdir()
    first, second, *_ = sorted(folder.iterdir())
    shutil.copyfile(first, some / first.name)
    arguments = (some, PHRASES[0], "--bundle", tiny_bundle, "--output", tmp_path / "out")
    assert "would propose for 1 pictures" in label(*arguments, "--dry-run").stdout
    assert label(*arguments).exit_code == 0
    assert label(*arguments).stdout.endswith("unchanged, nothing to do\n")
    shutil.copyfile(second, some / second.name)
    assert label(*arguments).exit_code == 0
    assert len(answers(tmp_path / "out")) == 2


def test_a_killed_run_goes_on_where_it_was(folder: Path, whole: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    words = (folder, *PHRASES, "--bundle", tiny_bundle, "--output", tmp_path / "out")
    partial = tmp_path / ".out.partial" / "proposals.jsonl"
    process = start([sys.executable, "-m", "edgetune", "label", *map(str, words)])
    while process.poll() is None and not (partial.is_file() and partial.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # What is there is kept, whatever it says: the first line is given a mark that no model would give it.
    first, *rest = partial.read_text().splitlines(keepends=True)
    marked = json.loads(first)
    marked["answers"][0]["text"] = "from before"
    partial.write_text(json.dumps(marked) + "\n" + "".join(rest))
    result = label(*words)
    assert result.exit_code == 0, result.stderr
    expected = answers(whole)
    expected[marked["image"]]["answers"][0]["text"] = "from before"
    assert answers(tmp_path / "out") == expected


def test_shards_join_to_the_whole(folder: Path, whole: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    parts = []
    for shard in ("1/2", "2/2"):
        parts.append(tmp_path / shard.replace("/", "of"))
        result = label(folder, *PHRASES, "--bundle", tiny_bundle, "--output", parts[-1], "--shard", shard)
        assert result.exit_code == 0, result.stderr
    assert [len(answers(part)) for part in parts] == [4, 4]
    assert label("merge", folder, *parts, "--output", tmp_path / "all").exit_code == 0
    for name in ("pictures.txt", "labelstudio.json", "cvat.xml", "coco.json", "records.jsonl"):
        assert (tmp_path / "all" / name).read_text() == (whole / name).read_text()
    twice = label("merge", folder, parts[0], whole, "--output", tmp_path / "twice")
    assert (twice.exit_code, "is in" in twice.stderr) == (2, True), twice.stderr
    other = tmp_path / "other"
    assert label(folder, PHRASES[0], "--bundle", tiny_bundle, "--output", other, "--shard", "2/8").exit_code == 0
    refused = label("merge", folder, parts[0], other, "--output", tmp_path / "none")
    assert f"for {PHRASES[0]}, but {parts[0]} by" in refused.stderr
    foreign = label("merge", folder, tiny_bundle, "--output", tmp_path / "none")
    assert "holds the result of 'export', not of 'label'" in foreign.stderr


def test_pictures_that_are_labelled_are_left_out(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Under another name and in another place: the pixels tell."""
    done = sorted(folder.iterdir())[3]
    shutil.copyfile(done, tmp_path / "upload.jpg")
    record = {"image": "upload.jpg", "text": PHRASES[0], "bbox": []}
    (tmp_path / "labelled.jsonl").write_text(json.dumps(record) + "\n")
    places = ("--bundle", tiny_bundle, "--output", tmp_path / "out")
    result = label(folder, PHRASES[0], *places, "--labelled", tmp_path / "labelled.jsonl")
    assert result.exit_code == 0, result.stderr
    assert answers(tmp_path / "out")[done.name].get("labelled") is True
    assert sorted((tmp_path / "out" / "pictures.txt").read_text().split()) == [
        path.name for path in sorted(folder.iterdir()) if path != done
    ]


def test_a_picture_that_cannot_be_read_stops_or_is_listed(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    good = sorted(folder.iterdir())[0]
    shutil.copyfile(good, some / "good.jpg")
    (some / "torn.jpg").write_bytes(good.read_bytes()[:2000])
    (some / "list.txt").write_text("torn.jpg")
    arguments = (some, PHRASES[0], "--bundle", tiny_bundle, "--output", tmp_path / "out")
    stopped = label(*arguments)
    assert stopped.exit_code == 2
    assert stopped.stderr.startswith(f"error: {some / 'torn.jpg'}: broken or truncated image")
    assert not (tmp_path / "out").exists()
    reported = label(*arguments, "--on-error", "report")
    assert reported.exit_code == 0, reported.stderr
    assert f"{some}: pictures that cannot be read: 1 (rejected.jsonl)\n" in reported.stderr
    assert f"{some}: files that are no pictures by their names, left out: 1\n" in reported.stderr
    [rejected] = lines(tmp_path / "out" / "rejected.jsonl")
    assert rejected["source"] == str(some / "torn.jpg") and "truncated" in rejected["problem"]
    assert (tmp_path / "out" / "pictures.txt").read_text() == "good.jpg\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("cup", "cup"), "the phrase 'cup' is given twice"),
        (("cup", "--shard", "3/2"), "shard 3/2: there is no shard 3 of 2"),
        (("cup", "--training", "a.toml"), "--training needs --learn"),
        (("cup", "--learn", "a.json"), "--learn needs --checkpoint"),
        (
            ("cup", "--learn", "a.json", "--checkpoint", "base", "--shard", "1/2"),
            "--learn and --shard exclude each other",
        ),
        (
            ("cup", "--learn", "a.json", "--checkpoint", "base", "--labelled", "b.json"),
            "--labelled has no effect beside",
        ),
        (("cup", "--labelled", "a.json"), "a.json: no such data file"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_done(
    folder: Path, tiny_bundle: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = label(folder, *options, "--bundle", tiny_bundle, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}"), result.stderr
    assert not list(tmp_path.iterdir())


def corrected(folder: Path, tasks: list[dict[str, Any]], output: Path) -> Path:
    """Write what Label Studio exports once people have drawn a box on one picture and deleted all on the next."""
    for number, task in enumerate(tasks):
        value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": [PHRASES[0]]}
        drawn = {"id": "a", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}
        task |= {"id": number, "annotations": [{"result": [] if number % 2 else [drawn]}]}
    output.write_text(json.dumps(tasks))
    return output


def test_a_round_learns_and_proposes_for_the_rest(
    folder: Path, qwen3_vl: Path, qwen3_vl_bundle: Path, tmp_path: Path
) -> None:
    """Corrected tasks of Label Studio become an adapter, a checkpoint, a bundle as the one before, and proposals."""
    first = tmp_path / "round1"
    short = ("--max-new-tokens", "4")
    result = label(folder, *PHRASES, "--bundle", qwen3_vl_bundle, "--output", first, "--first", "3", *short)
    assert result.exit_code == 0, result.stderr
    tasks = json.loads((first / "labelstudio.json").read_text())
    chosen = (first / "pictures.txt").read_text().split()
    assert len(tasks) == 3
    export = corrected(folder, tasks, tmp_path / "export.json")
    (tmp_path / "training.toml").write_text("epochs = 2\nlearning-rate = 5e-2\nbatch-size = 2\n")
    places = ("--checkpoint", qwen3_vl, "--bundle", qwen3_vl_bundle, "--output", tmp_path / "round2")
    training = ("--training", tmp_path / "training.toml")
    arguments = (folder, *PHRASES, "--learn", export, *training, *places, *short)
    planned = label(*arguments, "--dry-run")
    assert planned.exit_code == 0 and not (tmp_path / "round2").exists()
    result = label(*arguments)
    assert result.exit_code == 0, result.stderr

    steps = {path.name: read_manifest(path) for path in (tmp_path / "round2").iterdir()}
    assert set(steps) == {"corrected", "adapter", "merged", "bundle", "proposals"}
    decided = lines(tmp_path / "round2" / "corrected" / "data.jsonl")
    records = [(Path(one["image"]).name, one["text"], one["bbox"]) for one in decided]
    assert len(records) == 6 and sum(boxes == [] for *_, boxes in records) == 4
    assert {name for name, *_ in records} == set(chosen)
    assert Adapter.open(tmp_path / "round2" / "adapter").folder == tmp_path / "round2" / "adapter"
    # Until the model has learned from some, what it doubts says little about the pictures.
    assert read_manifest(first)["settings"]["order"] == "random"
    assert steps["proposals"]["settings"]["order"] == "uncertain"
    before = read_manifest(qwen3_vl_bundle)
    for key in ("format", "precision", "vision_precision", "head_precision", "check"):
        assert steps["bundle"]["settings"][key] == before["settings"][key]
    assert steps["merged"]["inputs"]["adapter"]["path"] == str(tmp_path / "round2" / "adapter")
    rest = (tmp_path / "round2" / "proposals" / "pictures.txt").read_text().split()
    assert sorted(rest) == sorted({path.name for path in folder.iterdir()} - set(chosen))

    sums = {path: sha256_file(path) for path in (tmp_path / "round2").rglob("*") if path.is_file()}
    again = label(*arguments)
    assert again.exit_code == 0 and again.stderr.count("unchanged, kept") == 5
    assert {path: sha256_file(path) for path in sums} == sums


def test_a_bundle_of_a_weight_set_is_followed_by_one_of_a_new_weight_set(
    folder: Path, qwen3_vl: Path, weight_set: Path, tmp_path: Path
) -> None:
    before = tmp_path / "before"
    source = ["--checkpoint", str(qwen3_vl), "--weights", str(weight_set), "--check", "none"]
    cli.main(["export", *source, "--output", str(before)], standalone_mode=False)
    name = sorted(folder.iterdir())[0].name
    rows = [{"image": str(folder / name), "text": phrase, "bbox": [10, 20, 90, 100]} for phrase in PHRASES]
    (tmp_path / "corrected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "training.toml").write_text("epochs = 2\nlearning-rate = 5e-2\nbatch-size = 1\n")
    (tmp_path / "calibration.toml").write_text('method = "rtn"\ngroup-size = [32]\n')
    learned = ("--learn", tmp_path / "corrected.jsonl")
    files = ("--training", tmp_path / "training.toml", "--calibration", tmp_path / "calibration.toml")
    places = ("--checkpoint", qwen3_vl, "--bundle", before, "--output", tmp_path / "round")
    result = label(folder, *PHRASES, *learned, *files, *places, "--max-new-tokens", "4")
    assert result.exit_code == 0, result.stderr
    weights, bundle = (read_manifest(tmp_path / "round" / step) for step in ("weights", "bundle"))
    assert weights["settings"]["solve"]["method"] == "rtn"
    assert bundle["inputs"]["weights"]["path"] == str(tmp_path / "round" / "weights")
    assert bundle["settings"] == read_manifest(before)["settings"]


def test_what_was_corrected_twice_counts_as_the_later_file_has_it(folder: Path, tmp_path: Path) -> None:
    from edgetune_data.labelling.corrections import collect, read_settings

    names = sorted(path.name for path in folder.iterdir())[:2]
    paths = []
    for number, box in enumerate(([1, 2, 30, 40], [5, 6, 70, 80])):
        paths.append(tmp_path / f"{number}.jsonl")
        rows = [{"image": str(folder / name), "text": "cup", "bbox": box} for name in names[number:]]
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, files, _ = collect(paths, [read_settings(path, folder, ("cup",), None) for path in paths])
    assert [(Path(one["image"]).name, one["bbox"]) for one in records] == [
        (names[0], [1, 2, 30, 40]),
        (names[1], [5, 6, 70, 80]),
    ]
    assert files == paths


def test_a_task_on_which_nothing_was_left_counts_as_labelled(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Label Studio's export of a picture whose proposals were all deleted has an annotation without a region."""
    done = sorted(folder.iterdir())[0].name
    task = {"id": 1, "data": {"image": f"/data/local-files/?d={folder.name}/{done}"}, "annotations": [{"result": []}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    places = ("--bundle", tiny_bundle, "--output", tmp_path / "out", "--labelled", tmp_path / "export.json")
    result = label(folder, PHRASES[0], *places)
    assert result.exit_code == 0, result.stderr
    assert done not in (tmp_path / "out" / "pictures.txt").read_text().split()
