"""Engines built for real, with TensorRT-RTX on the CPU, for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from builders import TINY_MODEL
from edgetune.cli import cli
from edgetune_export.graph import save_model
from edgetune_export.vision.attention import ONE_FRAME
from edgetune_export.vision.trt import quantize_static
from edgetune_runtime import cli as run_cli
from edgetune_runtime.backends.trt.build import BuildJob, build_apart
from edgetune_runtime.backends.trt.engines import choose, graphs_of, read_engines
from edgetune_runtime.backends.trt.library import Library, load_library
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, EdgetuneError
from edgetune_runtime.manifest import sha256_file
from reference import load_model, written_tower

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed"
)
RTX = "tensorrt_rtx"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with engines for two generations of RTX, as one command of a user writes it."""
    output = tmp_path_factory.mktemp("tiny") / "bundle"
    place = ["--checkpoint", str(TINY_MODEL), "--format", "trt", "--output", str(output)]
    cli.main(["export", *place, "--trt-target", "sm86,sm120"], standalone_mode=False)
    return output


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "bundle"))


def test_the_tiny_model_builds_for_both(tiny: Path) -> None:
    bundle = Bundle.load(tiny)  # verifies every file, the engines too
    fields = bundle.manifest["result"]["bundle"]
    version = load_library(RTX).version
    expected = [{"library": RTX, "version": version, "capability": number} for number in ("8.6", "12.0")]
    assert fields["trt"]["engines"] == expected and "deferred" not in fields["trt"]
    assert fields["trt"]["profile"] == "10.16"
    found = {engines.capability: engines for engines in read_engines(tiny)}
    assert set(found) == {"8.6", "12.0"}
    for engines in found.values():
        for part, graph in graphs_of(bundle).items():
            path = engines.path(part, graph.source)
            assert engines.parts[part]["sha256"] == sha256_file(path)
            assert engines.parts[part]["seconds"] > 0 < engines.parts[part]["cpu_seconds"]
            assert 100 < engines.parts[part]["peak_rss_mb"] < 20_000
            # A plain engine: TensorRT's own first bytes, none of ours.
            assert b"edgetune" not in path.read_bytes()[:1024] and path.read_bytes()[:4] != b"{\n  "


@pytest.mark.parametrize(("family", "precision"), [("qwen3_vl", "int4"), ("qwen2_5_vl", "int8"), ("qwen2_vl", "fp16")])
def test_a_device_adds_engines_to_the_graphs_of_old_versions(
    family: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint: Path = request.getfixturevalue(family)
    folder = tmp_path / "bundle"
    place = ["--checkpoint", str(checkpoint), "--format", "trt", "--output", str(folder), "--trt-profile", "10.3"]
    export = ["export", *place, "--precision", precision, "--max-length", "256"]
    cli.main(export, standalone_mode=False)
    code, out, _ = run("build-engine", str(folder), "--target", "sm86", capsys=capsys)
    assert code == 0 and "building vision" in out and "building decoder" in out and "written" in out
    engines = read_engines(folder)[0]
    assert (engines.flavour, engines.capability) == (RTX, "8.6")
    assert all(part["size"] > 1_000_000 for part in engines.parts.values())
    bundle = Bundle.load(folder)  # the manifest still tells the truth about what export wrote
    (engines.folder / "vision.engine").unlink()
    with pytest.raises(BundleError, match=r"listed in engines.json but missing"):
        engines.path("vision", graphs_of(bundle)["vision"].source)
    # Engines do not stand in the way of the next export.
    before = (folder / "manifest.json").stat().st_mtime_ns
    cli.main(export, standalone_mode=False)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_an_int8_vision_encoder_builds(qwen3_vl: Path, tmp_path: Path) -> None:
    loaded = load_model(qwen3_vl)
    tower = loaded.model.visual
    names = [name for name, layer in tower.named_modules() if isinstance(layer, torch.nn.Linear)]
    model = written_tower(loaded, ONE_FRAME, ir.DataType.FLOAT16)
    quantize_static(model, {f"tower.{name}.weight": 8.0 for name in names})
    path, width = tmp_path / "vision.onnx", tower.patch_embed.proj.weight[0].numel()
    save_model(model, path)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == len(names)
    profile = {"pixel_values": [[4, width], [64, width], [256, width]]}
    build_apart(BuildJob(RTX, str(path), [profile], str(tmp_path / "vision.engine"), "12.0"))
    assert (tmp_path / "vision.engine").stat().st_size > 1_000_000


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run_cli.main(list(arguments))
    told = capsys.readouterr()
    return code, told.out, told.err


def test_what_is_there_is_kept(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.engine")}
    code, out, _ = run("build-engine", str(copied), "--target", "sm86", "--json", capsys=capsys)
    told = json.loads(out)
    assert (
        code == 0
        and told["built"] is False
        and told["capability"] == "8.6"
        and set(told["parts"]) == {"vision", "decoder"}
    )
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.engine")} == before


def test_a_changed_engine_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engines = next(found for found in read_engines(copied) if found.capability == "8.6")
    path = engines.folder / "vision.engine"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    source = graphs_of(Bundle.load(copied, verify=False))["vision"].source
    with pytest.raises(BundleError, match="the engine was changed"):
        engines.path("vision", source)
    with pytest.raises(BundleError, match="built from another export"):
        engines.path("vision", "0" * 64)
    code, _, err = run("build-engine", str(copied), "--target", "8.6", "--no-verify", capsys=capsys)
    assert code == 2 and "these engines are part of the export" in err and "hint: export again" in err
    (engines.folder / "engines.json").write_text("{}")
    with pytest.raises(BundleError, match=r"engines.json: not a list of engines"):
        read_engines(copied)


def test_engines_of_another_device_or_version_are_refused(tiny: Path) -> None:
    own = load_library(RTX)
    engines, library = choose(tiny, [own], "12.0")
    assert (engines.capability, library) == ("12.0", own)
    cases = [(own, "8.9"), (Library(RTX, None, "1.6.0.1"), "8.6"), (Library("tensorrt", None, own.version), "8.6")]
    for library, capability in cases:
        with pytest.raises(BundleError) as caught:
            choose(tiny, [library], capability)
        message = str(caught.value)
        assert f"no engine for {library.title} on compute capability {capability}" in message
        assert f"TensorRT-RTX {own.version} on compute capability 8.6" in message
        assert caught.value.hint is not None and "edgetune-run build-engine" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["--target", "sm99"], 2, "TensorRT-RTX does not build for 9.9", "8.6"),
        (["--target", "ampere"], 2, "unknown target 'ampere'", "sm86"),
        (["--library", "onnxruntime"], 2, "unknown library 'onnxruntime'", "tensorrt_rtx"),
    ],
)
def test_refusals(
    tiny: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str, hint: str
) -> None:
    returned, _, err = run("build-engine", str(tiny), "--no-verify", *arguments, capsys=capsys)
    assert returned == code and message in err and hint in err and len(err.strip().splitlines()) == 2


def test_other_bundles_have_no_engines(qwen3_vl_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("build-engine", str(qwen3_vl_bundle), "--target", "sm86", capsys=capsys)
    assert code == 2 and "a bundle of format 'onnx' has no TensorRT engines" in err


def test_a_graph_that_tensorrt_cannot_read_is_told(int4_bundle: Path, tmp_path: Path) -> None:
    graph = int4_bundle / "onnx" / "decoder_model_merged.onnx"
    with pytest.raises(
        EdgetuneError, match=r"decoder_model_merged.onnx: TensorRT-RTX .* cannot read it: .*must be FP16"
    ):
        build_apart(BuildJob(RTX, str(graph), [], str(tmp_path / "engine"), "8.6"))
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(EdgetuneError, match=r"model.onnx: the build was stopped by SIGKILL") as caught:
        build_apart(BuildJob(RTX, "model.onnx", [], "engine", "8.6"))
    assert caught.value.hint is not None and "memory" in caught.value.hint


def test_the_embedding_table_is_half_and_mapped(tiny: Path) -> None:
    table = np.load(Bundle.load(tiny, verify=False).files["embed"], mmap_mode="r")
    weight = load_model(TINY_MODEL).get_input_embeddings().weight.detach().numpy()
    assert isinstance(table, np.memmap) and table.dtype == np.float16
    np.testing.assert_array_equal(table, weight.astype(np.float16))
