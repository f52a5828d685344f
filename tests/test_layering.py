"""Who may import whom, read from the syntax trees.

    runtime  <-  core  <-  data, train, calibrate, export, bench  <-  edgetune

An arrow never points back, and stages never call each other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "edgetune": ROOT / "edge" / "edgetune",
    "edgetune_core": ROOT / "edge" / "edgetune_core",
    "edgetune_export": ROOT / "edge" / "edgetune_export",
    "edgetune_data": ROOT / "data" / "edgetune_data",
    "edgetune_train": ROOT / "train" / "edgetune_train",
    "edgetune_calibrate": ROOT / "calibrate" / "edgetune_calibrate",
    "edgetune_bench": ROOT / "benchmarks" / "edgetune_bench",
    "edgetune_runtime": ROOT / "runtime" / "edgetune_runtime",
}
MODULES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, folder in FOLDERS.items()
    for path in folder.rglob("*.py")
}
ENGINES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_bindings", "cuda"}
RUNTIME_NEEDS = {"numpy", "PIL", "tokenizers"}
PACKED_WEIGHTS = {"safetensors"}
SERVER = {"anyio", "starlette", "uvicorn", "prometheus_client", "jsonschema"}
CAMERA = {"av", "cv2", "foxglove", "paho"}
TORCH = {"torch", "transformers", "triton"}
COMMAND_LINE_NEEDS = {"click", "tqdm"}


def imported(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Yield the absolute names of the modules that a file imports, type-checking-only ones left out."""
    nodes = list(ast.iter_child_nodes(ast.parse(path.read_text(encoding="utf-8"))))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            nodes += ast.iter_child_nodes(node)


def ours(names: Iterator[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0].startswith("edgetune")}


def third_party(names: Iterator[str]) -> set[str]:
    roots = {name.partition(".")[0] for name in names}
    return {root for root in roots if root not in sys.stdlib_module_names and not root.startswith("edgetune")}


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def modules_of(*packages: str) -> list[str]:
    found = [name for name in MODULES if within(name, *packages)]
    assert found, packages
    return found


@pytest.mark.parametrize("module", modules_of("edgetune_runtime"))
def test_the_runtime_needs_numpy_pillow_tokenizers_and_engines_in_backends(module: str) -> None:
    path = MODULES[module]
    assert all(within(name, "edgetune_runtime") for name in ours(imported(path)))
    extras = set()
    if within(module, "edgetune_runtime.backends"):
        extras = ENGINES | PACKED_WEIGHTS
    elif within(module, "edgetune_runtime.quant"):
        extras = PACKED_WEIGHTS
    if within(module, "edgetune_runtime.backends.triton"):
        extras |= TORCH
    if within(module, "edgetune_runtime.serve"):
        extras = SERVER
    if within(module, "edgetune_runtime.live"):
        extras = CAMERA
    if within(module, "edgetune_runtime.live.sinks.page"):
        extras = SERVER
    assert third_party(imported(path)) <= RUNTIME_NEEDS | extras
    assert not third_party(imported(path, top_level_only=True)) & PACKED_WEIGHTS or within(
        module, "edgetune_runtime.backends"
    )


@pytest.mark.parametrize("module", [name for name in modules_of("edgetune_runtime") if "triton" not in name])
def test_only_the_triton_engine_is_written_for_torch(module: str) -> None:
    assert not any(within(name, "edgetune_runtime.backends.triton") for name in imported(MODULES[module]))


@pytest.mark.parametrize("module", modules_of("edgetune_runtime"))
def test_the_runtime_parses_as_python_3_10(module: str) -> None:
    ast.parse(MODULES[module].read_text(encoding="utf-8"), feature_version=(3, 10))


@pytest.mark.parametrize("module", modules_of("edgetune_core"))
def test_the_core_imports_the_runtime_and_itself(module: str) -> None:
    assert all(within(name, "edgetune_runtime", "edgetune_core") for name in ours(imported(MODULES[module])))


@pytest.mark.parametrize(
    "module",
    modules_of("edgetune_data", "edgetune_train", "edgetune_calibrate", "edgetune_export", "edgetune_bench"),
)
def test_a_stage_imports_the_core_the_runtime_and_itself(module: str) -> None:
    allowed = ("edgetune_runtime", "edgetune_core", module.partition(".")[0])
    assert all(within(name, *allowed) for name in ours(imported(MODULES[module])))


@pytest.mark.parametrize("module", modules_of("edgetune"))
def test_only_the_api_and_commands_import_stages(module: str) -> None:
    if within(module, "edgetune.api", "edgetune.commands"):
        return
    allowed = ["edgetune_runtime", "edgetune_core", "edgetune"]
    assert all(within(name, *allowed) for name in ours(imported(MODULES[module])))
    if not within(module, "edgetune.cli", "edgetune.__main__"):
        assert not any(within(name, "edgetune.commands") for name in ours(imported(MODULES[module])))


@pytest.mark.parametrize("module", modules_of("edgetune"))
def test_the_command_line_imports_stages_only_when_a_verb_runs(module: str) -> None:
    if within(module, "edgetune.doctor"):
        return
    names = list(imported(MODULES[module], top_level_only=True))
    light = ["edgetune.api", "edgetune.commands", "edgetune.cli", "edgetune.__version__", "edgetune_core"]
    light += [f"{package}.settings" for package in FOLDERS]  # dataclasses of options
    light += ["edgetune_export.formats"]  # names and module paths only
    light += [
        f"edgetune_runtime.{name}"
        for name in ("errors", "manifest", "pixels", "plugins", "serve.limits", "signals", "terminal", "_version")
    ]
    assert third_party(iter(names)) <= COMMAND_LINE_NEEDS
    assert all(name in ("edgetune", "edgetune_core") or within(name, *light) for name in ours(iter(names)))


@pytest.mark.parametrize("module", modules_of("edgetune.commands"))
def test_commands_run_no_stage_of_their_own(module: str) -> None:
    """What a verb does can be called from Python."""
    assert "edgetune_core.stage.run_stage" not in set(imported(MODULES[module]))
