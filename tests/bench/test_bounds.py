"""`edgetune bench --max-pixels`: whole and in shards, merged and gated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgetune.cli import cli
from edgetune_runtime.bench.results import Results
from edgetune_runtime.typed_json import decode

SMALL = ("--max-new-tokens", "8", "--threads", "1", "--warmup", "0")


def edgetune(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over everything, and the same in two shards."""
    folder = tmp_path_factory.mktemp("bounds")
    common = (f"small={bundle}", "--baseline", bundle, "--data", data, "--max-pixels", "12k,6k", *SMALL)
    for name, shard in (("whole", ()), ("1", ("--shard", "1/2")), ("2", ("--shard", "2/2"))):
        done = edgetune("bench", *common, *shard, "--output", folder / name)
        assert done.exit_code == 0, done.stderr
    return folder


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_target_is_a_row_at_each_bound_beside_its_whole_baseline(folders: Path, bundle: Path) -> None:
    found = read(folders / "whole")
    rows = [(row["name"], row.get("max_pixels"), row["baseline"]) for row in found["rows"]]
    assert rows == [(bundle.name, None, True), ("small@12k", 12_000, False), ("small@6k", 6000, False)]
    tokens = [row["image_tokens"] for row in found["rows"]]
    assert tokens[0] > tokens[1] > tokens[2]
    assert decode(Results, found).rows[1].max_pixels == 12_000
    assert "image tokens" in (folders / "whole" / "table.md").read_text()
    assert (folders / "whole" / "predictions" / "small@6k.jsonl").is_file()


def test_shards_join_to_what_one_run_found(folders: Path) -> None:
    merged = folders / "merged"
    assert edgetune("bench", "merge", folders / "1", folders / "2", "--output", merged).exit_code == 0
    for one, other in zip(read(folders / "whole")["rows"], read(merged)["rows"], strict=True):
        for key in ("name", "max_pixels", "image_tokens", "ground", "vqa", "delta"):
            assert one.get(key) == other.get(key), key
        assert other["power"]["answers"] == 6


def test_machines_that_measured_at_bounds_stand_side_by_side(folders: Path) -> None:
    output = folders / "machines"
    done = edgetune("bench", "merge", f"a={folders / 'whole'}", f"b={folders / 'whole'}", "--output", output)
    assert done.exit_code == 0, done.stderr
    assert "small@12k@a" in [row["name"] for row in read(output)["rows"]]
    assert (output / "report.html").read_text().count("Image-token budget") == 1


def test_the_gate_takes_a_row_at_a_bound(folders: Path) -> None:
    done = edgetune("gate", folders / "whole", "--row", "small@12k", "--max-drop", 100)
    assert done.exit_code == 0, done.stderr


def test_a_bound_counts_once_and_what_is_none_is_one_error(bundle: Path, data: Path, tmp_path: Path) -> None:
    done = edgetune("bench", bundle, "--data", data, "--output", tmp_path / "x", "--max-pixels", "8k,8000", "--dry-run")
    assert done.exit_code == 0, done.stderr
    done = edgetune("bench", bundle, "--data", data, "--output", tmp_path / "x", "--max-pixels", "8k,big")
    assert done.exit_code == 2
    assert "'big' is not an area in pixels, such as 400000, 400k or 1.5M" in done.stderr
    assert list(tmp_path.iterdir()) == []
