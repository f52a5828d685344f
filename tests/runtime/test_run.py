"""`edgetune-run` and `edgetune run` as processes: text, JSON, pictures, errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

COMMANDS = {"edgetune-run": ["-m", "edgetune_runtime.cli"], "edgetune run": ["-m", "edgetune", "run"]}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.linear_gradient("L").convert("RGB").resize((120, 90)).save(path)
    return path


def run(*arguments: object, command: str = "edgetune-run") -> subprocess.CompletedProcess[str]:
    pytest.importorskip(COMMANDS[command][1].partition(".")[0])
    return subprocess.run(
        [sys.executable, *COMMANDS[command], *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_boxes_as_json_and_as_a_picture(command: str, qwen3_vl_bundle: Path, image: Path, tmp_path: Path) -> None:
    picture = tmp_path / "boxes.png"
    phrases = ["the owl", "the left clock"]
    done = run(qwen3_vl_bundle, image, *phrases, "--json", "--out", picture, "--max-new-tokens", 6, command=command)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["width"], report["height"]) == (120, 90)
    assert [row["phrase"] for row in report["results"]] == phrases
    for row in report["results"]:
        assert set(row) == {"phrase", "detections", "status", "problem", "text", "timings"}
        assert row["timings"]["tokens"] <= 6
    assert report["results"][1]["timings"]["vision"] == 0  # the same image again
    with Image.open(picture) as drawn:
        assert drawn.size == (120, 90)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_question(command: str, qwen3_vl_bundle: Path, image: Path) -> None:
    done = run(qwen3_vl_bundle, image, "What is it?", "--ask", "--max-new-tokens", 4, command=command)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "What is it?" and last.endswith("tokens)")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{bundle}", "missing.png", "x"], 2, "error: missing.png: no such image file"),
        (["{bundle}", "{image}", "x", "--out", "boxes.xyz"], 2, "error: boxes.xyz: cannot write this kind of picture"),
        (["{bundle}", "{image}", "x", "--out", "boxes.blp"], 2, "error: boxes.blp: cannot write this kind of picture"),
        (["{bundle}", "{image}", "x", "--out", "{image}"], 2, "photo.png: is the picture that is asked about"),
        (["{bundle}", "{image}", "x", "--threads", "2147483648"], 2, "error: 2147483648 threads: at most"),
        (["{bundle}", "{image}", "x", "--out", "nowhere/boxes.png"], 2, "error: nowhere: no such folder"),
        (["{bundle}", "{image}", "x", "--ask", "--out", "a.png"], 2, "error: answers in words have no boxes to draw"),
        (["{bundle}", "{image}", " "], 2, "error: the phrase is empty"),
        (["{bundle}", "{image}", "x", "--threads", "0"], 2, "error: threads must be a whole number of at least 1"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_errors(
    command: str, arguments: list[str], code: int, message: str, qwen3_vl_bundle: Path, image: Path
) -> None:
    done = run(*(part.format(bundle=qwen3_vl_bundle, image=image) for part in arguments), command=command)
    assert done.returncode == code
    assert done.stderr.startswith("error: ") and message in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [("edgetune-run", "/missing: no such folder"), ("edgetune run", " missing: no such file or folder (the bundle)")],
)
def test_a_bundle_that_is_not_there(command: str, message: str, image: Path) -> None:
    done = run("missing", image, "x", command=command)
    assert done.returncode == 2 and done.stderr.splitlines()[0].endswith(message)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_picture_that_cannot_be_written_is_named(qwen3_vl_bundle: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "full.png").symlink_to("/dev/full")
    done = run(qwen3_vl_bundle, image, "x", "--max-new-tokens", 1, "--out", tmp_path / "full.png")
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        3,
        f"error: {tmp_path / 'full.png'}: no space left on the disk",
    )
