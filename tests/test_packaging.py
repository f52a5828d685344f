"""What the two distributions hold and promise, read from archives that are built here the way a release is."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from edgetune_runtime import __version__

ROOT = Path(__file__).resolve().parent.parent


def build(project: Path, folder: Path) -> zipfile.ZipFile:
    """Build the source archive, and the wheel from it, as a release does."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module")
def edgetune(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(ROOT, tmp_path_factory.mktemp("edgetune"))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(ROOT / "runtime", tmp_path_factory.mktemp("runtime"))


def read(wheel: zipfile.ZipFile, suffix: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(suffix))
    return wheel.read(name).decode()


def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(read(wheel, ".dist-info/METADATA"))


def requirements(wheel: zipfile.ZipFile) -> list[str]:
    return [line for line in metadata(wheel).get_all("Requires-Dist", []) if "extra ==" not in line]


def contents(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def sources(*folders: str) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(Path(*path.relative_to(ROOT).parts[1:])) for path in paths if "__pycache__" not in path.parts}


def test_the_wheels_hold_the_sources_and_nothing_else(edgetune: zipfile.ZipFile, runtime: zipfile.ZipFile) -> None:
    stages = (
        "data/edgetune_data",
        "train/edgetune_train",
        "calibrate/edgetune_calibrate",
        "benchmarks/edgetune_bench",
    )
    assert contents(edgetune) == sources("edge/edgetune", "edge/edgetune_core", "edge/edgetune_export", *stages)
    assert contents(runtime) == sources("runtime/edgetune_runtime")


def test_both_have_the_one_version_and_edgetune_pins_the_runtime(
    edgetune: zipfile.ZipFile, runtime: zipfile.ZipFile
) -> None:
    assert metadata(edgetune)["Version"] == metadata(runtime)["Version"] == __version__
    assert f"edgetune-runtime=={__version__}" in requirements(edgetune)


def test_the_runtime_needs_three_packages(runtime: zipfile.ZipFile) -> None:
    assert {line.partition(">")[0] for line in requirements(runtime)} == {"numpy", "pillow", "tokenizers"}
    assert set(metadata(runtime).get_all("Provides-Extra", [])) == {
        "live",
        "mcap",
        "mqtt",
        "onnx",
        "onnx-gpu",
        "openvino",
        "packed",
        "serve",
        "track",
        "triton",
    }
    assert metadata(runtime)["Requires-Python"] == ">=3.10"


def test_heavy_packages_of_edgetune_are_extras(edgetune: zipfile.ZipFile) -> None:
    assert {line.partition(">")[0].partition("=")[0] for line in requirements(edgetune)} == {
        "click",
        "edgetune-runtime",
        "tqdm",
    }
    assert metadata(edgetune)["Requires-Python"] == ">=3.11"


@pytest.mark.parametrize("name", ["edgetune", "runtime"])
def test_licence_types_and_readme_travel_along(name: str, request: pytest.FixtureRequest) -> None:
    wheel: zipfile.ZipFile = request.getfixturevalue(name)
    assert "Apache License" in read(wheel, ".dist-info/licenses/LICENSE")
    assert metadata(wheel)["License-Expression"] == "Apache-2.0"
    packages = {Path(name).parts[0] for name in contents(wheel)}
    assert {f"{package}/py.typed" for package in packages} <= contents(wheel)
    assert str(metadata(wheel).get_payload()).strip()


def test_the_programs(edgetune: zipfile.ZipFile, runtime: zipfile.ZipFile) -> None:
    assert "edgetune = edgetune.cli:main" in read(edgetune, "entry_points.txt")
    assert "triton = edgetune_runtime.backends.triton.backend:TorchBackend" in read(runtime, "entry_points.txt")
    assert "edgetune-run = edgetune_runtime.cli:main" in read(runtime, "entry_points.txt")


def test_what_is_tested_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == "2.13.0"  # no local part, so that a CPU build of the release serves
    assert {"numpy", "transformers", "peft", "onnx", "onnxruntime", "tokenizers", "pillow", "click"} <= set(pins)
