"""doctor against what this environment really has, and against environments that lack things."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch

from edgetune.doctor.engines import Probe, probe_engine
from edgetune.doctor.packages import Package, packages_of_extra
from edgetune.doctor.power import describe_power
from edgetune.doctor.trial import ADD_MODEL
from packages import write_package
from sysfs import CONDITIONS, ORIN_NX, build


def doctor(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run doctor, optionally with a folder of modules that come before the installed ones."""
    environment = dict(os.environ)
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "edgetune", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that adds four things, of which one can be used."""
    points = {
        "edgetune.exporters": {"till": "shop.bundle:FORMAT"},
        "edgetune.redactors": {"prices": "shop.privacy:Prices", "stamps": "shop.crash:Stamps"},
        "edgetune.verbs": {"train": "shop.stock:command"},
    }
    modules = {
        "shop/bundle.py": "import no_such_library",
        "shop/crash.py": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "shop/privacy.py": "class Prices:\n    def find(self, image):\n        return []",
    }
    return write_package(tmp_path_factory.mktemp("site"), points, modules)


@pytest.fixture(scope="module")
def report(site: Path) -> dict[str, Any]:
    done = doctor("--json", path=site)
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def features(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {feature["name"]: feature for feature in report["features"]}


def test_the_machine_is_described(report: dict[str, Any]) -> None:
    machine = report["machine"]
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["cores"] == len(os.sched_getaffinity(0))
    assert machine["memory_bytes"] == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.01)
    if torch.cpu._is_avx512_supported():
        assert "AVX-512" in machine["instructions"]
    assert ("AVX-512 VNNI" in machine["instructions"]) == torch.cpu._is_vnni_supported()


def test_engines_tell_what_their_own_libraries_tell(features: dict[str, dict[str, Any]]) -> None:
    assert features["onnx"]["works"]
    assert features["onnx"]["detail"] == f"onnxruntime {onnxruntime.__version__}"
    assert features["torch"]["detail"] == f"torch {torch.__version__}"
    assert features["torch-cuda"]["works"] == torch.cuda.is_available()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert not features["onnx-cuda"]["works"]
        assert features["onnx-cuda"]["detail"].endswith("was built without CUDAExecutionProvider")
        assert "onnx-gpu" in features["onnx-cuda"]["install"]


def test_packages_are_those_of_the_extras_with_their_versions(features: dict[str, dict[str, Any]]) -> None:
    train = {package["name"]: package for package in features["train"]["packages"]}
    assert set(train) == {"accelerate", "peft", "pyyaml", "tensorboard", "torch", "transformers"}
    assert train["peft"]["installed"] == importlib.metadata.version("peft")
    assert features["train"]["works"]
    assert "onnxruntime" in {package["name"] for package in features["export"]["packages"]}


PLUGINS = [
    ("edgetune.redactors", "prices", True, "shop.privacy:Prices"),
    ("edgetune.redactors", "stamps", False, "crashed with SIGSEGV"),
    (
        "edgetune.exporters",
        "till",
        False,
        "the format 'till' of shop 1.0 (shop.bundle:FORMAT) cannot be imported: No module named 'no_such_library'",
    ),
    (
        "edgetune.verbs",
        "train",
        False,
        "the verb 'train' of shop 1.0 (shop.stock:command) has the name of a built-in one",
    ),
]


def test_sources_of_energy_are_told_or_where_they_would_stand(report: dict[str, Any]) -> None:
    told = {found["name"]: found for found in report["power"]}
    assert list(told)[:3] == ["RAPL", "INA3221", "NVML"]
    assert {"temperature", "CPU clock", "GPU clock", "power mode"} <= told.keys()
    assert told["INA3221"]["tells"] == bool(list(Path("/sys/bus/i2c/drivers").glob("ina3221*")))
    assert told["CPU clock"]["tells"] == Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").is_file()
    assert all(found["detail"] for found in told.values())


def test_the_page_shows_what_is_told_of_a_jetson(tmp_path: Path) -> None:
    build(tmp_path, "sys/bus/i2c/drivers", ORIN_NX)
    build(tmp_path, "", CONDITIONS)
    page = (Path(__file__).resolve().parents[2] / "docs" / "doctor.md").read_text()
    for found in describe_power(tmp_path):
        if found.name != "NVML":
            told = f"{found.name:<15}  {'yes' if found.tells else 'no':<4}  {found.detail.replace(str(tmp_path), '')}"
            assert f"    {told}\n" in page


def test_plug_ins_are_listed_with_their_package_or_what_is_wrong_with_them(report: dict[str, Any]) -> None:
    assert report["plugins"] == [
        {"group": group, "name": name, "package": "shop 1.0", "works": works, "detail": detail}
        for group, name, works, detail in PLUGINS
    ]


def test_the_table_names_everything_and_how_to_get_the_missing(site: Path, features: dict[str, dict[str, Any]]) -> None:
    text = doctor(path=site).stdout
    for group, name, works, detail in PLUGINS:
        [line] = [line for line in text.splitlines() if line.startswith(name) and group in line]
        assert line.split()[2:5] == ["shop", "1.0", "yes" if works else "no"] and line.endswith(detail)
    for name, feature in features.items():
        assert name in text
        assert (feature["install"] in text) == (not feature["works"])


def test_require_decides_the_exit_code(tmp_path: Path) -> None:
    assert doctor("--require", "onnx, train").returncode == 0
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    broken = doctor("--require", "train,onnx", path=tmp_path)
    assert broken.returncode == 3
    error, hint = broken.stderr.splitlines()
    assert error == "error: missing: onnx (libcudart.so.13: cannot open shared object file)"
    assert hint.startswith("hint: pip install ") and hint.endswith('[onnx]"')
    assert doctor(path=tmp_path).returncode == 0


def test_an_unknown_requirement_gets_a_suggestion() -> None:
    result = doctor("--require", "onxn")
    assert result.returncode == 2
    assert "Did you mean 'onnx'?" in result.stderr


@pytest.mark.parametrize(
    ("module", "detail"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import sys; sys.exit(7)", "exit code 7 without a word"),
        ("raise RuntimeError()", "RuntimeError"),
    ],
)
def test_an_engine_that_breaks_is_reported_and_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, detail: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    assert probe_engine(Probe("tensorrt", "")) == (False, detail)


def test_an_engine_that_is_not_there_is_said_to_be_missing() -> None:
    assert probe_engine(Probe("no_such_engine", "")) == (False, "no_such_engine is not installed")


def test_the_trial_model_is_a_valid_one() -> None:
    model = onnx.load_from_string(ADD_MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Add"]


@pytest.mark.parametrize(
    ("installed", "fits"),
    [("2.13.0+cpu", True), ("2.6", True), ("2.5.9", False), ("10.0", True), (None, False)],
)
def test_versions_are_compared_as_numbers(installed: str | None, fits: bool) -> None:
    assert Package("torch", "2.6", installed).fits == fits


def test_an_extra_follows_the_extras_of_other_distributions() -> None:
    assert [package.name for package in packages_of_extra("edgetune", "bench")] == ["onnxruntime", "psutil"]
