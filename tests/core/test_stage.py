"""Stage folders: what is written, when it is written again, and what is never overwritten."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgetune_core.stage import StageResult, check_input, run_stage
from edgetune_runtime.errors import BundleError, EdgetuneError, InputError
from edgetune_runtime.manifest import read_manifest, sha256_file, verify_files

RESULT = {"out", "out/manifest.json", "out/deep", "out/deep/text.txt"}


class Stage:
    """A stage that copies its input in capitals and counts how often it really worked."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source.txt"
        self.source.write_text("clock\n")
        self.output = folder / "out"
        self.builds = 0

    def build(self, work: Path) -> Mapping[str, Any]:
        self.builds += 1
        (work / "deep").mkdir()
        (work / "deep" / "text.txt").write_text(self.source.read_text().upper())
        return {"builds": self.builds}

    def run(self, **changes: Any) -> StageResult:
        arguments: dict[str, Any] = {
            "inputs": {"records": self.source},
            "settings": {"rank": 8, "cache": Path("a/b")},
            "build": self.build,
            "seed": 1,
        }
        return run_stage("merge", self.output, **{**arguments, **changes})


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_the_manifest_describes_the_folder(stage: Stage) -> None:
    result = stage.run()
    assert not result.skipped
    manifest = json.loads((stage.output / "manifest.json").read_text())
    text = stage.output / "deep" / "text.txt"
    assert manifest == result.manifest
    assert manifest["stage"] == "merge"
    assert manifest["files"] == {"deep/text.txt": {"sha256": sha256_file(text), "size": 6}}
    assert manifest["inputs"] == {"records": {"path": str(stage.source), "sha256": sha256_file(stage.source)}}
    assert manifest["settings"] == {"rank": 8, "cache": "a/b"}
    assert manifest["seed"] == 1
    assert manifest["result"] == {"builds": 1}
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    verify_files(stage.output)
    assert everything(stage.output.parent) == {
        "source.txt",
        "out",
        "out/manifest.json",
        "out/deep",
        "out/deep/text.txt",
    }


def test_an_unchanged_stage_is_skipped_and_force_redoes_it(stage: Stage) -> None:
    stage.run()
    again = stage.run()
    assert again.skipped
    assert again.manifest["result"] == {"builds": 1}
    forced = stage.run(force=True)
    assert not forced.skipped
    assert stage.builds == 2


@pytest.mark.parametrize(
    "change", [{"settings": {"rank": 16}}, {"seed": 2}, {"settings": {"rank": 8, "cache": Path("a/c")}}]
)
def test_a_changed_setting_or_seed_runs_again(stage: Stage, change: dict[str, Any]) -> None:
    stage.run()
    assert not stage.run(**change).skipped
    assert stage.builds == 2


def test_a_changed_input_runs_again_and_replaces_the_result(stage: Stage) -> None:
    stage.run()
    stage.source.write_text("cactus\n")
    assert not stage.run().skipped
    assert (stage.output / "deep" / "text.txt").read_text() == "CACTUS\n"
    assert everything(stage.output.parent) == {
        "source.txt",
        "out",
        "out/manifest.json",
        "out/deep",
        "out/deep/text.txt",
    }


def test_a_changed_file_in_an_input_folder_runs_again(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    stage.run(inputs={"base": folder})
    assert stage.run(inputs={"base": folder}).skipped
    (folder / "weights").write_bytes(b"2")
    assert not stage.run(inputs={"base": folder}).skipped


def test_a_rerun_of_an_earlier_stage_runs_the_later_one_again(stage: Stage, tmp_path: Path) -> None:
    def later() -> StageResult:
        return run_stage(
            "export", tmp_path / "later", inputs={"from": stage.output}, settings={}, build=lambda work: {}
        )

    stage.run()
    later()
    assert later().skipped
    stage.source.write_text("another\n")
    stage.run()
    assert not later().skipped


def test_a_damaged_result_is_built_again(stage: Stage) -> None:
    stage.run()
    (stage.output / "deep" / "text.txt").write_text("CLICK\n")
    assert not stage.run().skipped
    verify_files(stage.output)


def test_an_altered_stage_folder_is_no_input(stage: Stage, tmp_path: Path) -> None:
    stage.run()
    (stage.output / "deep" / "text.txt").write_text("CLICK\n")
    with pytest.raises(BundleError, match=r"text\.txt.*changed"):
        run_stage("export", tmp_path / "later", inputs={"from": stage.output}, settings={}, build=lambda work: {})
    assert not (tmp_path / "later").exists()


def test_a_dry_run_writes_nothing_and_tells_the_plan(stage: Stage) -> None:
    stage.output = stage.output / "below" / "other"
    before = everything(stage.source.parent)
    plan = stage.run(dry_run=True)
    assert not plan.skipped
    assert plan.manifest["stage"] == "merge"
    assert everything(stage.source.parent) == before
    done = stage.run()
    assert done.manifest["fingerprint"] == plan.manifest["fingerprint"]
    assert stage.run(dry_run=True).skipped
    assert not stage.run(dry_run=True, force=True).skipped
    assert stage.builds == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("wrong"), EdgetuneError("refused")])
def test_a_failed_build_leaves_the_older_result_and_nothing_else(stage: Stage, error: BaseException) -> None:
    stage.run()
    before = everything(stage.output.parent)

    def fail(work: Path) -> Mapping[str, Any]:
        (work / "half").write_text("half")
        raise error

    with pytest.raises(type(error)):
        stage.run(build=fail, seed=2)
    assert everything(stage.output.parent) == before
    assert stage.run().skipped


def test_a_resumable_build_finds_its_files_again_unless_something_changed(stage: Stage) -> None:
    seen: list[set[str]] = []

    def interrupted(work: Path) -> Mapping[str, Any]:
        seen.append({name for name in everything(work) if not name.startswith(".")})
        (work / "checkpoint-1").write_text("state")
        raise KeyboardInterrupt

    def finish(work: Path) -> Mapping[str, Any]:
        seen.append({name for name in everything(work) if not name.startswith(".")})
        return {}

    for seed, build in [(1, interrupted), (1, interrupted), (2, interrupted), (2, finish)]:
        if build is interrupted:
            with pytest.raises(KeyboardInterrupt):
                stage.run(build=build, seed=seed, resumable=True)
            assert not stage.output.exists()
        else:
            stage.run(build=build, seed=seed, resumable=True)
    assert seen == [set(), {"checkpoint-1"}, set(), {"checkpoint-1"}]
    assert set(read_manifest(stage.output)["files"]) == {"checkpoint-1"}


def test_foreign_files_are_never_overwritten(stage: Stage) -> None:
    stage.output.mkdir()
    (stage.output / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="did not write"):
        stage.run(force=True)
    assert everything(stage.output) == {"thesis.tex"}


def test_a_file_added_to_a_result_is_not_deleted_with_it(stage: Stage) -> None:
    stage.run()
    (stage.output / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.md"):
        stage.run(seed=2)
    assert (stage.output / "notes.md").read_text() == "mine"


def test_the_result_of_another_stage_is_not_overwritten(stage: Stage) -> None:
    stage.run()
    with pytest.raises(InputError, match="holds the result of 'merge', not of 'train'"):
        run_stage("train", stage.output, inputs={}, settings={}, build=lambda work: {})


def test_an_empty_folder_may_become_the_output(stage: Stage) -> None:
    stage.output.mkdir()
    assert not stage.run().skipped


def test_behind_a_link_the_folder_itself_is_replaced(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    stage.output.symlink_to(tmp_path / "disk" / "out")
    stage.run()
    assert not stage.run(seed=2).skipped
    assert stage.output.is_symlink()
    assert everything(tmp_path / "disk") == RESULT


@pytest.mark.parametrize("output", ["base", "base/merged", "."])
def test_an_output_that_overlaps_an_input_is_refused(tmp_path: Path, output: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    with pytest.raises(InputError, match="overlaps"):
        run_stage("merge", tmp_path / output, inputs={"base": base}, settings={}, build=lambda work: {})
    assert everything(tmp_path) == {"base", "base/config.json"}


def test_a_missing_input_is_named(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such file or folder \(the adapter of merge\)"):
        stage.run(inputs={"adapter": tmp_path / "nowhere"})


def test_a_run_killed_between_its_two_renames_brings_the_older_result_back(stage: Stage) -> None:
    stage.run()
    stage.output.rename(stage.output.parent / ".out.old")
    assert stage.run().skipped
    assert stage.builds == 1


def test_a_setting_that_has_no_json_form_is_a_programming_error(stage: Stage) -> None:
    with pytest.raises(TypeError, match="JSON"):
        stage.run(settings={"model": object()})


def test_resume_points_of_a_forced_run_outlive_a_run_that_finds_nothing_to_do(stage: Stage) -> None:
    def interrupted(work: Path) -> Mapping[str, Any]:
        (work / "checkpoint-1").write_text("state")
        raise KeyboardInterrupt

    stage.run(resumable=True)
    with pytest.raises(KeyboardInterrupt):
        stage.run(build=interrupted, force=True, resumable=True)
    assert stage.run(resumable=True).skipped
    assert (stage.output.parent / ".out.partial" / "checkpoint-1").is_file()
    assert not stage.run(seed=2, resumable=True).skipped  # of no use to another seed
    assert everything(stage.output.parent) == RESULT | {"source.txt"}


@pytest.mark.parametrize("left", [".m.partial/weights.bin", ".m.partial", "renamed", "renamed/weights.bin"])
def test_what_an_interrupted_run_left_is_no_input(stage: Stage, tmp_path: Path, left: str) -> None:
    def interrupted(work: Path) -> Mapping[str, Any]:
        (work / "weights.bin").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("train", tmp_path / "m", inputs={}, settings={}, build=interrupted, resumable=True)
    shutil.copytree(tmp_path / ".m.partial", tmp_path / "renamed")
    with pytest.raises(InputError, match=rf"{left}: the adapter of merge is not finished"):
        stage.run(inputs={"adapter": tmp_path / left})
    with pytest.raises(InputError, match="not finished"):
        check_input(tmp_path / left)


def test_a_fingerprint_of_another_program_says_nothing(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / ".fingerprint").write_text("Loop or whorl\n")
    assert not stage.run().skipped


@pytest.mark.parametrize("name", ["manifest.json", "dataset.json"])
def test_a_file_that_differs_from_the_list_beside_it_is_no_input(stage: Stage, tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    data = tmp_path / "data" / "data.jsonl"
    data.write_text("one\ntwo\n")
    listed = {"schema": 1, "version": 1, "files": {data.name: {"sha256": sha256_file(data), "size": 8}}}
    (tmp_path / "data" / name).write_text(json.dumps(listed))
    assert not stage.run(inputs={"data": data}).skipped
    data.write_text("one\n")
    with pytest.raises(BundleError, match=r"data\.jsonl: was changed after it was written"):
        stage.run(inputs={"data": data})
    (tmp_path / "data" / name).write_text('{"offset": 3}\n{"offset": 4}\n')  # a manifest of someone else
    assert not stage.run(inputs={"data": data}).skipped


def test_files_get_the_permissions_that_the_user_gives_new_files(stage: Stage) -> None:
    def private(work: Path) -> Mapping[str, Any]:
        os.close(os.open(work / "weights", os.O_WRONLY | os.O_CREAT, 0o600))
        (work / "run.sh").write_text("")
        (work / "run.sh").chmod(0o700)
        return {}

    before = os.umask(0o026)
    try:
        stage.run(build=private)
    finally:
        os.umask(before)
    modes = {name: (stage.output / name).stat().st_mode & 0o777 for name in ("weights", "run.sh", "manifest.json")}
    assert modes == {"weights": 0o640, "run.sh": 0o740, "manifest.json": 0o640}


def test_how_long_a_stage_took_is_no_part_of_what_later_stages_are_made_from(stage: Stage, tmp_path: Path) -> None:
    def timed(seconds: str, text: str = "same") -> None:
        def build(work: Path) -> Mapping[str, Any]:
            (work / "logs").mkdir()
            (work / "logs" / "log.jsonl").write_text(seconds)
            (work / "weights").write_text(text)
            return {}

        run_stage("train", tmp_path / "adapter", inputs={}, settings={}, build=build, force=True)

    timed("12 s")
    stage.run(inputs={"adapter": tmp_path / "adapter"})
    timed("13 s")
    assert stage.run(inputs={"adapter": tmp_path / "adapter"}).skipped
    timed("13 s", "other")
    assert not stage.run(inputs={"adapter": tmp_path / "adapter"}).skipped


def test_a_link_that_leads_to_itself_is_no_output(stage: Stage) -> None:
    stage.output.symlink_to(stage.output)
    with pytest.raises(InputError, match="out: a symbolic link that leads back to itself"):
        stage.run()


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_stands_where_a_result_is_built_is_left_alone(stage: Stage, tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    work = tmp_path / ".out.partial"
    work.symlink_to(tmp_path / "mine") if kind == "link" else work.write_text("mine")
    with pytest.raises(InputError, match=r"\.out\.partial: is in the way"):
        stage.run()
    assert (tmp_path / "mine" / "thesis.tex").is_file()
    assert work.is_symlink() == (kind == "link")


def test_a_name_that_is_kept_for_unfinished_results_is_no_output(stage: Stage, tmp_path: Path) -> None:
    for output in (tmp_path / ".out.partial", tmp_path / ".out.partial" / "deep"):
        stage.output = output
        with pytest.raises(InputError, match="not finished"):
            stage.run()
