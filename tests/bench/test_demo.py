"""`edgetune demo` end to end on a small checkpoint with random weights, in the shape of examples/tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from builders import build_qwen3_vl
from edgetune.cli import cli
from edgetune_runtime.manifest import read_manifest
from processes import on_one_core

# The interface of examples/tiny/make_data.py, drawing plain rectangles.
GENERATOR = """
import argparse, json, random
from pathlib import Path
from PIL import Image, ImageDraw

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=Path)
for split in ("train", "val", "test"):
    parser.add_argument(f"--{split}", type=int)
parser.add_argument("--queries", type=int)
parser.add_argument("--seed", type=int)
parser.add_argument("--domain")
options = parser.parse_args()
assert options.domain == "night"
for split in ("train", "val", "test"):
    draw = random.Random(f"{options.seed}{split}")
    lines = []
    for number in range(getattr(options, split)):
        image = Image.new("RGB", (96, 80), tuple(draw.randrange(256) for _ in range(3)))
        x, y = draw.randrange(50), draw.randrange(40)
        box = [x, y, x + draw.randrange(10, 40), y + draw.randrange(10, 40)]
        ImageDraw.Draw(image).rectangle(box, fill="red")
        image.save(options.output / f"{split}{number}.png")
        record = {"image": f"{split}{number}.png", "text": "the red box", "bbox": box}
        lines += [json.dumps(record) + "\\n"] * options.queries
    (options.output / f"{split}.jsonl").write_text("".join(lines))
"""
SMALL = (
    *("--train-scenes", "16", "--val-scenes", "1", "--test-scenes", "2", "--queries", "2"),
    *("--pictures", "2", "--threads", "1"),
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and its make_data.py."""
    folder = tmp_path_factory.mktemp("example")
    build_qwen3_vl(folder / "model")
    (folder / "make_data.py").write_text(GENERATOR)
    return folder


def demo(example: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune", "demo", "--model", str(example / "model"), "--output", str(output)]
    return subprocess.run(
        [*command, *SMALL, *more], preexec_fn=on_one_core, capture_output=True, text=True, check=False
    )


def test_the_chain_runs_to_its_page_and_continues_where_it_stopped(example: Path, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    first = demo(example, output)
    assert first.returncode == 0, first.stderr
    rows = json.loads((output / "bench" / "results.json").read_text())
    assert [row["name"] for row in rows["rows"]] == ["base", "tuned", "fp32", "int8", "int4", "gptq"]
    assert all(row["status"] == "ok" for row in rows["rows"])
    assert rows["baseline"] == "tuned"
    calibrated = [read_manifest(output / name)["result"]["bundle"]["calibration"] for name in ("int4", "gptq")]
    assert calibrated[0] == calibrated[1]
    assert calibrated[0]["method"] == "gptq"
    page = (output / "page" / "index.html").read_text()
    assert page.count("<img ") == 2 * 4  # two pictures: truth, base, tuned, int4
    assert "int8" in page
    with Image.open(output / "page" / "pictures.png") as sheet:
        assert sheet.width == 8 + 4 * (96 + 8)

    # An interrupted demo is one whose later folders are missing.
    made = {
        folder.name: (folder / "manifest.json").stat().st_mtime_ns for folder in output.iterdir() if folder.is_dir()
    }
    (output / "page" / "index.html").unlink()
    second = demo(example, output, "--json")
    assert second.returncode == 0, second.stderr
    for name, when in made.items():
        assert ((output / name / "manifest.json").stat().st_mtime_ns == when) == (name != "page"), name
    assert (output / "page" / "index.html").read_text() == page
    assert json.loads(second.stdout)["page"] == str(output / "page" / "index.html")


def test_a_failing_stage_ends_the_demo_with_its_exit_code(example: Path, tmp_path: Path) -> None:
    broken = tmp_path / "example"
    build_qwen3_vl(broken / "model")
    (broken / "model" / "preprocessor_config.json").unlink()
    (broken / "make_data.py").write_text(GENERATOR)
    done = demo(broken, tmp_path / "demo")
    assert done.returncode == 2
    assert "preprocessor_config.json" in done.stderr
    assert sorted(path.name for path in (tmp_path / "demo").iterdir() if path.is_dir()) == ["data"]


def test_a_dry_run_prints_the_commands_only(example: Path, tmp_path: Path) -> None:
    done = demo(example, tmp_path / "demo", "--dry-run")
    assert done.returncode == 0, done.stderr
    for part in (
        "make_data.py",
        "edgetune train",
        "edgetune merge",
        "edgetune calibrate",
        "--format gptq",
        "edgetune bench",
    ):
        assert part in done.stderr
    assert not (tmp_path / "demo").exists()


def test_elsewhere_the_demo_says_where_to_run_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["demo", "--model", str(tmp_path), "--output", str(tmp_path / "demo")])
    assert done.exit_code == 2
    assert "not the example model" in done.stderr
    assert "hint: run from the root of the repository" in done.stderr
