"""Shards of a run, measured one by one and joined: the same answers and figures as one run has, or a clear refusal."""

from __future__ import annotations

import doctest
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import edgetune
import make_data
from builders import TINY_MODEL
from edgetune.cli import cli
from edgetune_bench import shards
from edgetune_runtime.manifest import verify_files

SMALL = ("--max-new-tokens", "8", "--threads", "1")
FEW = ("--max-new-tokens", "40", "--threads", "1", "--warmup", "0")
STAGES = ("preprocess", "vision", "prefill", "decode", "total")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def merge(*arguments: object) -> Result:
    return run("bench", "merge", *arguments)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def said(folder: Path, row: str) -> list[dict[str, Any]]:
    """A row's answers without their times."""
    lines = [json.loads(line) for line in (folder / "predictions" / f"{row}.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timings"} for line in lines]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of all kinds about seven night scenes, on which the tiny model errs; those of one scene far apart."""
    folder = tmp_path_factory.mktemp("records")
    scenes = ["--domain", "night", "--test", "7", "--seed", "5", "--queries", "3", "--questions", "1"]
    make_data.main(["--output", str(folder), *scenes])
    path = folder / "test.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def rows(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The tiny model in fp32 and in int4."""
    exact = tmp_path_factory.mktemp("exact") / "fp32"
    words = ("--checkpoint", TINY_MODEL, "--precision", "fp32", "--check", "none", "--output", exact)
    assert run("export", *words).exit_code == 0
    return f"fp32={exact}", f"int4={tiny_bundle}"


@pytest.fixture(scope="module")
def bench(rows: tuple[str, str], records: Path) -> Callable[..., Result]:
    """`edgetune bench` of both, compared with fp32."""
    return lambda *more: run("bench", *rows, "--baseline", rows[0], "--data", records, *FEW, *more)


@pytest.fixture(scope="module")
def undivided(bench: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undivided") / "bench"
    assert bench("--output", output).exit_code == 0
    return output


@pytest.fixture(scope="module")
def parts(bench: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards, whose folders are not to be changed."""
    folder = tmp_path_factory.mktemp("parts")
    for index in (1, 2, 3):
        done = bench("--output", folder / f"part-{index}", "--shard", f"{index}/3")
        assert done.exit_code == 0, done.output
        assert f"shard {index}/3, " in done.stderr and "next: edgetune gate" not in done.stderr
    return [folder / f"part-{index}" for index in (1, 2, 3)]


def test_joined_shards_are_what_one_run_writes(undivided: Path, parts: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "joined"
    done = merge(parts[2], parts[0], parts[1], "--output", output)  # in whatever order they are named
    assert done.exit_code == 0, done.output
    verify_files(output)
    joined, whole = results(output), results(undivided)
    same = ("schema", "data", "inputs", "statistics", "baseline", "machine", "versions", "options")
    assert {key: joined[key] for key in same} == {key: whole[key] for key in same}
    assert joined.keys() - whole.keys() == {"shards"}
    for ours, theirs in zip(joined["rows"], whole["rows"], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("name", "title", "baseline", "ground", "vqa", "size_bytes", "engine", "precision", "threads"):
            assert ours[key] == theirs[key], key
        assert ours.get("delta") == theirs.get("delta")
        assert said(output, ours["name"]) == said(undivided, theirs["name"])
    delta = joined["rows"][1]["delta"]
    assert delta["miou"]["low"] < delta["miou"]["high"], "intervals without width would prove little"
    assert len({line["raw"] for line in said(output, "fp32")}) > 5, "answers that hardly differ would prove little"
    assert (output / "report.html").is_file() and "shard" not in (output / "table.md").read_text()
    assert "next: edgetune gate" in done.stderr


def test_costs_are_pooled_over_the_shards(parts: list[Path], tmp_path: Path) -> None:
    assert merge(*parts, "--output", tmp_path / "joined").exit_code == 0
    joined = results(tmp_path / "joined")
    for number, row in enumerate(joined["rows"]):
        rows = [results(part)["rows"][number] for part in parts]
        texts = ((part / "predictions" / f"{row['name']}.jsonl").read_text() for part in parts)
        timings = [json.loads(line)["timings"] for text in texts for line in text.splitlines()]
        assert len(timings) == 28
        for stage in STAGES:
            wanted = np.percentile([times[stage] for times in timings], (50, 95, 99))
            assert list(row["stages"][stage].values()) == pytest.approx(wanted)
        assert row["peak_rss_bytes"] == max(each["peak_rss_bytes"] for each in rows)
        for key in ("load_s", "cold_start_s"):
            assert row[key] == sorted(each[key] for each in rows)[1]
    jobs = joined["shards"]
    assert [job["command"] for job in jobs] == [results(part)["command"] for part in parts]
    assert [job["created"] for job in jobs] == [results(part)["created"] for part in parts]


def test_a_shard_says_what_it_is_a_part_of(undivided: Path, parts: list[Path], records: Path) -> None:
    """Every third picture in order of first appearance, from the second on, with all that is asked about it."""
    asked = [json.loads(line)["image"] for line in records.read_text().splitlines()]
    pictures = list(dict.fromkeys(asked))[1::3]
    assert len(pictures) == 2
    found, whole = results(parts[1]), results(undivided)
    assert found["options"]["shard"] == {"index": 2, "count": 3}
    assert found["data"]["whole"] == {"records": 28, "images_sha256": whole["data"]["images_sha256"]}
    assert found["inputs"] == whole["inputs"]
    for row in ("fp32", "int4"):
        lines = said(parts[1], row)
        assert [line["number"] for line in lines] == [n for n, image in enumerate(asked, 1) if image in pictures]
        assert [Path(line["image"]).name for line in lines] == [
            Path(image).name for image in asked if image in pictures
        ]
    for file in ("table.md", "report.html"):
        assert "shard 2/3, 8 of 28 records" in (parts[1] / file).read_text()


def test_the_gate_refuses_a_shard_and_takes_the_whole(parts: list[Path], tmp_path: Path) -> None:
    limits = ("--min", "valid-box=0", "--max-p95-ms", "1e6", "--allow-inconclusive", "--allow-unchecked")
    done = run("gate", parts[1], *limits, "--junit", tmp_path / "checks.xml")
    assert done.exit_code == 2
    assert "the results are those of shard 2/3, which says nothing of the whole set\nhint: join all" in done.stderr
    assert "edgetune bench merge" in done.stderr
    assert not (tmp_path / "checks.xml").exists()
    assert merge(*parts, "--output", tmp_path / "joined").exit_code == 0
    assert run("gate", tmp_path / "joined", *limits).exit_code == 0


@pytest.fixture(scope="module")
def device(rows: tuple[str, str], records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Files of `edgetune-run bench`: an undivided run, and two shards in two rounds."""
    folder = tmp_path_factory.mktemp("device")
    command = [sys.executable, "-m", "edgetune_runtime.cli", "bench", *rows, "--data", str(records), *FEW, "--output"]
    for name, more in (("whole", []), *((f"s{i}", ["--shard", f"{i}/2", "--rounds", "2"]) for i in (1, 2))):
        words = [*command, str(folder / f"{name}.json"), *more]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert (f"shard {name[1:]}/2, " in done.stderr) == (name != "whole")
    return folder / "whole.json", [folder / "s1.json", folder / "s2.json"]


def test_shards_of_a_device_are_joined_and_compared_with_a_desk(
    undivided: Path, parts: list[Path], device: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    whole, (first, second) = device
    desk = [f"desk={part}" for part in parts]
    done = merge(f"orin={second}", *desk, f"orin={first}", whole, "--output", tmp_path / "all")
    assert done.exit_code == 0, done.output
    found, alone = results(tmp_path / "all"), results(undivided)
    names = [(row["machine"], row["name"], row["baseline"]) for row in found["rows"]]
    assert names == [
        *(("orin", f"{row}@orin", False) for row in ("fp32", "int4")),
        *(("desk", f"{row}@desk", row == "fp32") for row in ("fp32", "int4")),
        *(("whole", f"{row}@whole", False) for row in ("fp32", "int4")),
    ]
    exact, int4 = alone["rows"]
    for row in found["rows"]:
        assert row["ground"] == (exact if row["name"].startswith("fp32") else int4)["ground"]
        assert row.get("delta", int4["delta"])["mcnemar"] is not None
    assert found["rows"][1]["delta"] == found["rows"][3]["delta"] == found["rows"][5]["delta"] == int4["delta"]
    counts = {name: len(machine.get("shards", ())) for name, machine in found["machines"].items()}
    assert counts == {"orin": 2, "desk": 3, "whole": 0}
    assert found["data"] == alone["data"]


def test_shards_with_one_machines_name_are_marked_with_it(device: tuple[Path, list[Path]], tmp_path: Path) -> None:
    done = merge(*(f"orin={path}" for path in device[1]), "--output", tmp_path / "all")
    assert done.exit_code == 0, done.output
    assert [row["machine"] for row in results(tmp_path / "all")["rows"]] == ["orin", "orin"]


def test_a_joined_whole_is_compared_with_another_machine(
    parts: list[Path], device: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    assert merge(*parts, "--output", tmp_path / "joined").exit_code == 0
    done = merge(tmp_path / "joined", device[0], "--output", tmp_path / "all")
    assert done.exit_code == 0, done.output
    assert [row["machine"] for row in results(tmp_path / "all")["rows"]] == ["joined"] * 2 + ["whole"] * 2


@pytest.mark.parametrize(("name", "limit"), [("data", 5), ("records", 20)])
def test_evals_of_a_limited_set_are_joined_with_their_metrics(
    tiny_bundle: Path, name: str, limit: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In `data`, two shards of three have one question each, of which alone there is no CIDEr-D."""
    metrics = ("--metric", "ap", "--metric", "bleu", "--metric", "cider")
    data = request.getfixturevalue(name)
    arguments = ("eval", tiny_bundle, "--data", data, "--limit", limit, *metrics, "--threads", 1)
    assert run(*arguments, "--output", tmp_path / "whole").exit_code == 0
    for index in (1, 2, 3):
        done = run(*arguments, "--output", tmp_path / f"{index}", "--shard", f"{index}/3")
        assert done.exit_code == 0, done.output
    done = merge(*(tmp_path / f"{index}" for index in (1, 2, 3)), "--output", tmp_path / "joined")
    assert done.exit_code == 0, done.output
    joined, whole = results(tmp_path / "joined"), results(tmp_path / "whole")
    assert joined["data"]["records"] == limit
    for key in ("data", "options", "metrics", "inputs"):
        assert joined[key] == whole[key]
    (ours,), (theirs,) = joined["rows"], whole["rows"]
    assert (ours["ground"], ours["vqa"]) == (theirs["ground"], theirs["vqa"])
    assert ours["vqa"]["cider"] is not None
    assert name == "data" or 0 < ours["ground"]["coco"]["ap_interval"]["low"] < ours["ground"]["coco"]["ap"]
    assert said(tmp_path / "joined", tiny_bundle.name) == said(tmp_path / "whole", tiny_bundle.name)


def test_one_shard_of_one_is_the_whole_set(bundle: Path, data: Path, tmp_path: Path) -> None:
    arguments = ("--data", data, "--limit", 2, *SMALL)
    measured = edgetune.evaluate(
        target=bundle, data=data, limit=2, max_new_tokens=8, threads=1, shard="1/1", output=tmp_path / "part"
    )
    assert measured.results is not None and str(measured.results.shard) == "1/1"
    assert merge(tmp_path / "part", "--output", tmp_path / "joined").exit_code == 0
    assert run("eval", bundle, *arguments, "--output", tmp_path / "whole").exit_code == 0
    assert results(tmp_path / "joined")["rows"][0]["ground"] == results(tmp_path / "whole")["rows"][0]["ground"]


def test_another_shard_in_the_same_folder_is_measured_anew(bundle: Path, data: Path, tmp_path: Path) -> None:
    for shard in ("1/3", "2/3"):
        run("eval", bundle, "--data", data, "--shard", shard, "--output", tmp_path / "out", *SMALL)
        assert results(tmp_path / "out")["options"]["shard"]["index"] == int(shard[0])
    kept = run("eval", bundle, "--data", data, "--shard", "2/3", "--output", tmp_path / "out", *SMALL)
    assert "kept" in kept.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "1/8"), "shard 1/8: there are only 7 pictures to divide, so shards would be empty\nhint: divide"),
        (("--shard", "1/2", "--limit", "1"), "shard 1/2: there are only 1 picture to divide"),
        (("--shard", "0/3"), "--shard: shard 0/3: there is no shard 0 of 3\nhint: shards are counted from 1"),
        (("--shard", "4/3"), "--shard: shard 4/3: there is no shard 4 of 3"),
        (("--shard", "2"), "--shard: '2' is not a shard\nhint: write I/N"),
        (("--shard", "2/7", "--rounds", "5"), "--rounds 5: there are only 4 records to deal out"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    bench: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = bench("--output", tmp_path / "out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr and "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


Change = Callable[[dict[str, Any]], Any]


def changed(part: Path, folder: Path, change: Change) -> Path:
    """A copy of a shard whose results.json was changed, without the manifest that would say so."""
    shutil.copytree(part, folder / part.name, ignore=shutil.ignore_patterns("manifest.json"))
    found = results(part)
    change(found)
    (folder / part.name / "results.json").write_text(json.dumps(found))
    return folder / part.name


def deep(*place: str | int, value: object) -> Change:
    def change(found: Any) -> None:
        for key in place[:-1]:
            found = found[key]
        found[place[-1]] = value

    return change


def without_row(found: dict[str, Any]) -> None:
    del found["rows"][1]


OTHER = "ee" * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (deep("inputs", "data", "sha256", value=OTHER), "the sha256 of the data file differs: "),
        (deep("data", "whole", "images_sha256", value=OTHER), "the sha256 of the pictures differs: "),
        (deep("data", "whole", "records", value=29), "the number of records differs: 28, 29"),
        (deep("statistics", "seed", value=7), "the seed of the intervals differs: 0, 7"),
        (deep("statistics", "resamples", value=7), "the resamples of the intervals differs: 10000, 7"),
        (deep("options", "max_new_tokens", value=9), "the option max_new_tokens differs: 40, 9"),
        (deep("options", "limit", value=14), "the option limit differs: none, 14"),
        (deep("options", "threads", value=2), "the option threads differs: 1, 2"),
        (deep("options", "shard", value={"index": 2, "count": 4}), "the number of shards differs: 3, 4"),
        (deep("inputs", "row int4", "sha256", value=OTHER), "the sha256 of the folder of row 'int4' differs: "),
        (deep("versions", "numpy", value="1.0"), "the version of numpy differs: "),
        (deep("versions", "torchx", value="1.0"), "the version of torchx differs: none, 1.0"),
        (deep("rows", 1, "engine", value="openvino"), "the engine of row 'int4' differs: onnx, openvino"),
        (deep("rows", 1, "name", value="int5"), "has no row 'int4', which "),
        (without_row, "shard 2/3 has no row 'int4', which "),
        (deep("metrics", value=["ap"]), "the further metrics differs: none, ap"),
        (deep("data", "records_sha256", value=OTHER), "fp32: its answers are not those to the records of shard 2/3"),
        (deep("options", "shard", value={"index": 1, "count": 3}), "are both shard 1/3"),
        (deep("options", "shard", value=None), "'whole' and 'records_sha256' of 'data' belong together"),
        (deep("options", "shard", value={"index": 4, "count": 3}), "there is no shard 4 of 3"),
        (deep("options", "shard", "count", value="3"), "options.shard.count: must be a whole number"),
    ],
)
def test_shards_of_another_run_are_refused(parts: list[Path], tmp_path: Path, change: Change, message: str) -> None:
    done = merge(parts[0], changed(parts[1], tmp_path, change), parts[2], "--output", tmp_path / "out")
    assert done.exit_code == 2, done.output
    error, *hints = done.stderr.splitlines()
    assert error.startswith("error: ") and message in error
    assert all(line.startswith("hint: ") for line in hints)
    assert not (tmp_path / "out").exists()


def test_a_missing_shard_is_named(parts: list[Path], tmp_path: Path) -> None:
    done = merge(parts[0], parts[2], "--output", tmp_path / "out", "--dry-run")
    assert done.exit_code == 2
    assert done.stderr == "error: shard 2/3 is missing: 2 of 3 are given\nhint: run again with --shard 2/3\n"
    done = merge(parts[1], "--output", tmp_path / "out")
    assert "error: shards 1/3, 3/3 are missing: 1 of 3 are given\n" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_same_shard_twice_is_refused(parts: list[Path], tmp_path: Path) -> None:
    done = merge(*parts, parts[1], "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert f"error: {parts[1]} and {parts[1]} are both shard 2/3\n" in done.stderr


def test_shards_beside_the_whole_set_are_refused(undivided: Path, parts: list[Path], tmp_path: Path) -> None:
    for arguments in ((undivided, *parts), (*(f"desk={part}" for part in parts), f"desk={undivided}")):
        done = merge(*arguments, "--output", tmp_path / "out")
        assert done.exit_code == 2
        assert f"{parts[0]} is shard 1/3, and {undivided} is of the whole set\nhint: name the machines" in done.stderr
    done = merge(parts[0], parts[1], f"desk={parts[2]}", "--output", tmp_path / "out")
    assert f"{parts[0]} is shard 1/3, and {parts[2]} is shard 3/3 of the machine 'desk'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_answers_that_were_mixed_up_are_refused(parts: list[Path], tmp_path: Path) -> None:
    """Two answers of one shard changed places in every row, so that rows still agree with each other."""
    broken = changed(parts[1], tmp_path, lambda found: None)
    for file in (broken / "predictions").iterdir():
        one, two, *rest = file.read_text().splitlines(keepends=True)
        file.write_text("".join([two, one, *rest]))
    done = merge(parts[0], broken, parts[2], "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert f"{broken}: fp32: its answers are not those to the records of shard 2/3" in done.stderr


def test_a_row_that_failed_in_one_shard_has_failed(undivided: Path, parts: list[Path], tmp_path: Path) -> None:
    def fail(found: dict[str, Any]) -> None:
        row = found["rows"][1]
        kept = {key: row[key] for key in ("name", "path", "kind", "baseline", "title")}
        found["rows"][1] = kept | {"status": "failed", "reason": "killed by SIGKILL", "exit_code": -9}
        del found["inputs"]["row int4"]

    broken = changed(parts[1], tmp_path, fail)
    done = merge(parts[0], broken, parts[2], "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    exact, failed = results(tmp_path / "out")["rows"]
    assert (exact["status"], failed["status"], failed["exit_code"]) == ("ok", "failed", -9)
    assert failed["reason"] == "shard 2/3: killed by SIGKILL"
    assert exact["ground"] == results(undivided)["rows"][0]["ground"]


def test_times_of_several_processors_are_remarked(parts: list[Path], tmp_path: Path) -> None:
    other = changed(parts[1], tmp_path, deep("machine", "cpu", value="Another CPU"))
    done = merge(parts[0], other, parts[2], "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    own = results(parts[0])["machine"]["cpu"]
    assert f"times are pooled over shards on several processors: {own}; Another CPU" in done.stderr
    assert results(tmp_path / "out")["machine"]["cpu"] == f"{own} / Another CPU"


def test_the_examples_hold() -> None:
    assert doctest.testmod(shards).failed == 0
