"""The GitHub Actions example: valid YAML, jobs that fit together, and commands that run as they are written."""

from __future__ import annotations

import json
import shlex
import tomllib
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from edgetune.cli import cli
from edgetune_runtime import cli as device
from edgetune_runtime.errors import GateFailed

ROOT = Path(__file__).resolve().parent.parent
yaml: Any = import_module("yaml")  # transformers needs it, so it is there; its types are not
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "examples" / "github-actions.yml").read_text())


def commands(job: dict[str, Any]) -> list[list[str]]:
    """The words of each command of a job."""
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    lines = [line for script in scripts for line in script.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.strip()]


COMMANDS = [words for job in WORKFLOW["jobs"].values() for words in commands(job)]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_one_that_is_there(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, verb, *arguments = words
    if program == "pip":
        for target in arguments[1:]:  # folders of the submodule, each with extras that its project has
            folder, _, extras = target.removesuffix("]").partition("[")
            project = tomllib.loads(
                (ROOT / folder.removeprefix("./edgetune").lstrip("/") / "pyproject.toml").read_text()
            )
            assert extras in project["project"]["optional-dependencies"]
        return
    if program == "edgetune":
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        command.make_context(verb, arguments)  # raises on an unknown option, a bad value or a missing one
    else:
        assert program == "edgetune-run"
        import_module(device.VERBS[verb]).build_parser().parse_args(arguments)


def test_it_trains_exports_for_tensorrt_measures_and_gates() -> None:
    verbs = [words[1] for words in COMMANDS if words[0].startswith("edgetune")]
    assert verbs == ["train", "merge", "calibrate", "export", "bench", "build-engine", "bench", "bench", "gate"]
    export = next(words for words in COMMANDS if words[:2] == ["edgetune", "export"])
    assert export[export.index("--format") + 1] == "trt"


def test_a_job_waits_for_the_jobs_whose_artifacts_it_takes() -> None:
    jobs = WORKFLOW["jobs"]
    made: dict[str, str] = {}
    for name, job in jobs.items():
        assert set(job) >= {"runs-on", "steps"}
        needs = job.get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        for step in job["steps"]:
            action = step.get("uses", "")
            if action.startswith("actions/download-artifact"):
                assert made[step["with"]["name"]] in needs
            if action.startswith("actions/upload-artifact"):
                made[step["with"]["name"]] = name
    assert set(made) == {"build", "device", "report"}


def test_what_a_command_reads_an_earlier_one_wrote_or_the_repository_has() -> None:
    """Folders under runs/ are named once as an output before anything reads them."""
    written = {"runs/gate.xml"}
    for words in COMMANDS:
        for flag, value in pairwise(words):
            path = value.rpartition("=")[2]
            if path.startswith("runs/") and flag not in ("--output", "--junit"):
                assert path in written, f"{path}: read before it is written"
        written |= {value for flag, value in pairwise(words) if flag == "--output"}


def write_records(path: Path, colours: list[str]) -> None:
    lines = []
    for index, colour in enumerate(colours):
        name = f"{path.stem}{index}.png"
        picture = Image.new("RGB", (192, 128), "black")
        box = (8 * index, 16, 8 * index + 48, 80)
        picture.paste(colour, box)
        picture.save(path.parent / name)
        lines.append(json.dumps({"image": name, "text": f"the {colour} square", "bbox": box}))
    path.write_text("\n".join(lines) + "\n")


def test_the_commands_run_one_after_the_other(
    qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole pipeline on a small random model, which the gate then stops.

    There is no GPU: the device's job measures an ONNX bundle on the CPU, and builds no engines.
    """
    (tmp_path / "base").symlink_to(qwen3_vl)
    (tmp_path / "data").mkdir()
    write_records(tmp_path / "data" / "train.jsonl", ["red", "green", "blue", "white"] * 4)
    write_records(tmp_path / "data" / "val.jsonl", ["pink", "cyan"])
    write_records(tmp_path / "data" / "calib.jsonl", ["orange", "brown"])
    write_records(tmp_path / "data" / "test.jsonl", ["yellow", "purple"])
    monkeypatch.chdir(tmp_path)
    small = {"calibrate": ["--group-size", "64"], "bench": ["--max-new-tokens", "8", "--warmup", "0"]}
    for program, verb, *arguments in COMMANDS:
        words = [verb, *("onnx" if word == "trt" else "cpu" if word == "cuda" else word for word in arguments)]
        words += small.get(verb, []) if arguments[:1] != ["merge"] else []
        if verb == "gate":
            break
        if program == "edgetune":
            cli.main(words, standalone_mode=False)
        elif program == "edgetune-run" and verb != "build-engine":
            assert device.main(words) == 0, capsys.readouterr().err
    assert words[0] == "gate"
    with pytest.raises(GateFailed, match=r"acc@0\.5"):
        cli.main(["gate", *arguments], standalone_mode=False)
    assert Path("runs/gate.xml").is_file() and Path("runs/release/report.html").is_file()
