"""Bundles that are quantized checkpoints: the runtime fills the decoder from them, with the answers of format onnx."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

from builders import build_qwen3_vl
from edgetune.cli import cli
from edgetune_core.weightset import WeightSet
from edgetune_export.decoder.builder import build_decoder
from edgetune_export.decoder.dialects.ort import OrtDialect
from edgetune_export.graph import save_model
from edgetune_runtime.backends import Backend, load_backend
from edgetune_runtime.backends.onnx.engine import OnnxBackend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, InputError, MissingDependency
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.session import Session
from hf_reader import dense_tensors
from reference import decoder_weights, load_model
from weight_sets import build_weight_set, memory_names

Float = npt.NDArray[np.float32]
TEXT = "model.language_model"
G32 = BlockFormat(4, 32, symmetric=False)


def mixed(name: str) -> BlockFormat:
    """A layer of 3 bits, one of 8, one without zero points."""
    if "layers.0." in name:
        return BlockFormat(3, 32, symmetric="mlp" in name)
    return BlockFormat(8, 64, symmetric=False) if "layers.1." in name else G32


def export(checkpoint: Path, weights: Path, output: Path, format_: str, *more: str) -> Path:
    arguments = ["--checkpoint", str(checkpoint), "--weights", str(weights), "--format", format_, *more]
    vision = [] if "server" in more else ["--vision-precision", "fp32"]
    cli.main(["export", *arguments, *vision, "--output", str(output)], standalone_mode=False)
    return output


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Checkpoint, weight set and GPTQ bundle: mixed widths, a scaled norm, a quantized head in a tied model."""
    folder = tmp_path_factory.mktemp("gptq")
    checkpoint = build_qwen3_vl(folder / "checkpoint", vocabulary=1792, layers=3)
    norm = f"{TEXT}.layers.1.input_layernorm.weight"
    weights = build_weight_set(
        checkpoint,
        folder / "set",
        choose=mixed,
        head=G32,
        overrides={norm: memory_names(checkpoint)[norm] * np.float32(1.01)},
    )
    return checkpoint, weights, export(checkpoint, weights, folder / "bundle", "gptq")


@pytest.fixture(scope="module")
def awq(qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Checkpoint, weight set and AWQ bundle of the family with biases."""
    folder = tmp_path_factory.mktemp("awq")
    weights = build_weight_set(qwen2_5_vl, folder / "set")
    return qwen2_5_vl, weights, export(qwen2_5_vl, weights, folder / "bundle", "awq")


@pytest.fixture(scope="module")
def compressed(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Checkpoint, weight set and compressed-tensors bundle without zero points."""
    folder = tmp_path_factory.mktemp("compressed")
    weights = build_weight_set(qwen3_vl, folder / "set", choose=lambda name: BlockFormat(4, 128, symmetric=True))
    return qwen3_vl, weights, export(qwen3_vl, weights, folder / "bundle", "compressed-tensors")


def as_onnx(checkpoint: Path, weights: Path, bundle: Bundle, folder: Path) -> OnnxBackend:
    """The decoder that format onnx writes from the same set, its weights inside, beside the bundle's other graphs."""
    model, found = load_model(checkpoint), WeightSet.load(weights)
    head = BlockFormat(8, found.usual.block, symmetric=True)
    decoder = decoder_weights(model, head_format=head, weights=found)
    graph = build_decoder(decoder, lambda builder, spec: OrtDialect(builder, spec, ir.DataType.FLOAT))
    save_model(graph, folder / "decoder.onnx")
    return OnnxBackend(vision=bundle.files["vision"], embed=bundle.files["embed"], decoder=folder / "decoder.onnx")


def answers(backend: Backend, bundle: Bundle) -> Iterator[Float]:
    """Logits of a prefill and of three more tokens, with features in DeepStack layers."""
    rng = np.random.default_rng(0)
    backend.reserve(16)
    for count in (9, 1, 1, 1):
        ids = rng.integers(0, 1000, count)
        positions = np.tile(np.arange(count), (3, 1)) + rng.integers(0, 9)
        features = [rng.normal(size=(count, 128)).astype(np.float32) for _ in range(bundle.model["deepstack"])]
        yield backend.forward(backend.embed(ids), positions, features).copy()


@pytest.mark.parametrize("made", ["gptq", "awq", "compressed"])
def test_answers_are_those_of_format_onnx(made: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    checkpoint, weights, folder = request.getfixturevalue(made)
    bundle = Bundle.load(folder)
    expected = list(answers(as_onnx(checkpoint, weights, bundle, tmp_path), bundle))
    actual = list(answers(load_backend(bundle), bundle))
    assert np.ptp(expected[0]) > 1
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("made", ["gptq", "awq", "compressed"])
def test_the_bundle_holds_its_weights_once_and_checks_itself(made: str, request: pytest.FixtureRequest) -> None:
    _, weights, folder = request.getfixturevalue(made)
    fields = json.loads((folder / "manifest.json").read_text())["result"]["bundle"]
    assert fields["parity"]["exact"]["token_agreement"] == 1.0
    assert fields["calibration"]["sha256"] == WeightSet.load(weights).sha256
    graph = onnx.load(folder / "onnx/decoder_model_merged.onnx", load_external_data=False).graph
    left_out = {
        tensor.name.rpartition(".")[0]
        for tensor in graph.initializer
        if {"location": "model.safetensors"}.items()
        <= {entry.key: entry.value for entry in tensor.external_data}.items()
    }
    assert left_out == set(fields["packed"]["products"])
    stacked = {name for product in fields["packed"]["products"].values() for name in product["layers"]}
    assert len(stacked) == len(WeightSet.load(weights).names)
    inside = sum(len(tensor.raw_data) for tensor in graph.initializer)
    assert inside < 300_000  # norms, biases, and the head where the set does not have it


def test_it_answers_about_pictures_and_is_a_whole_checkpoint(gptq: tuple[Path, Path, Path]) -> None:
    checkpoint, _, folder = gptq
    session = Session.load(folder)
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    assert isinstance(session.ground(picture, "the red cup", max_new_tokens=4), list)
    assert ImageSpec.from_checkpoint(folder) == ImageSpec.from_checkpoint(checkpoint)
    config = json.loads((folder / "config.json").read_text())
    assert json.loads((folder / "quantize_config.json").read_text()) == config["quantization_config"]
    assert "lm_head.weight" in dense_tensors(folder)
    for name in ("tokenizer.json", "preprocessor_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (checkpoint / name).read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_for_the_lean_runtime_alone_there_is_no_checkpoint(gptq: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The same graphs and answers; of the checkpoint, the quantized layers."""
    checkpoint, weights, both = gptq
    lean = export(checkpoint, weights, tmp_path / "lean", "gptq", "--for", "lean")
    graphs = [name for name in contents(both) if name.startswith("onnx/")]
    assert set(contents(lean)) == {*graphs, "tokenizer.json", "model.safetensors"}
    kept, whole = load_file(lean / "model.safetensors"), load_file(both / "model.safetensors")
    layers = {name.rpartition(".")[0] for name in whole if name.endswith(".qweight")}
    assert set(kept) == {name for name in whole if name.rpartition(".")[0] in layers and not name.endswith(".bias")}
    bundles = [Bundle.load(folder) for folder in (both, lean)]
    assert [bundle.purposes for bundle in bundles] == [("lean", "server"), ("lean",)]
    expected, actual = (list(answers(load_backend(bundle), bundle)) for bundle in bundles)
    np.testing.assert_array_equal(actual, expected)
    assert "readers" not in bundles[1].manifest["result"]["bundle"]
    with pytest.raises(BundleError, match="was exported for the lean runtime only") as caught:
        load_backend(bundles[1], engine="triton")
    assert "--for server" in str(caught.value.hint)


def test_for_servers_alone_there_are_no_graphs(
    awq: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, weights, both = awq
    server = export(checkpoint, weights, tmp_path / "server", "awq", "--for", "server")
    told = capsys.readouterr()
    assert "awq is read by vLLM" in told.out and "next: edgetune bench" not in told.err
    assert "warning: this bundle is refused by LMDeploy 0.18.0: groups of 32 in format awq" in told.err
    assert contents(server) == {name: data for name, data in contents(both).items() if not name.startswith("onnx/")}
    bundle = Bundle.load(server)
    fields = bundle.manifest["result"]["bundle"]
    assert fields["parity"]["exact"]["token_agreement"] == 1.0
    assert fields["vision_precision"] == "fp32" and fields["parity"]["vision_max_abs_diff"] < 1e-4
    with pytest.raises(BundleError, match="was exported for servers only and has no graphs") as caught:
        Session.load(server)
    assert "--for lean" in str(caught.value.hint)
    backends = [load_backend(Bundle.load(folder), engine="triton") for folder in (both, server)]
    expected, actual = (list(answers(backend, bundle)) for backend in backends)
    np.testing.assert_array_equal(actual, expected)


def test_a_format_for_servers_is_chosen_by_the_set(
    qwen3_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPTQ with zero points is not read by vLLM, and the default format by no server."""
    weights = build_weight_set(qwen3_vl, tmp_path / "set")
    arguments = ["--checkpoint", str(qwen3_vl), "--weights", str(weights), "--for", "server", "--json"]
    cli.main(["export", *arguments, "--output", str(tmp_path / "out")], standalone_mode=False)
    told = json.loads(capsys.readouterr().out)["manifest"]["result"]["bundle"]
    assert (told["format"], told["for"]) == ("compressed-tensors", ["server"])
    assert {"vLLM 0.32.0", "SGLang 0.5.23"} <= set(told["readers"]["read"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--for", "server"], "format onnx cannot be written for server"),
        (["--for", "server"], "format compressed-tensors is written from a weight set"),
        (["--for", "server", "--vision-precision", "int8"], "--vision-precision has no effect on a bundle for servers"),
        (["--names", "hub"], "--names has no effect on format onnx, which is no checkpoint"),
        (["--format", "trt", "--names", "transformers"], "--names has no effect on format trt"),
    ],
)
def test_what_servers_cannot_use_is_refused(qwen3_vl: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cli.main(
            ["export", "--checkpoint", str(qwen3_vl), "--output", str(tmp_path), *arguments], standalone_mode=False
        )


def damaged(source: Path, target: Path, change: Any) -> Bundle:
    """A copy of a bundle with its tensors changed, loaded without looking at hashes."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return Bundle.load(target, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{TEXT}.layers.2.mlp.up_proj.qzeros"), r"no tensor '.*layers\.2\.mlp\.up_proj\.qzeros'"),
        (
            lambda t: t.update({f"{TEXT}.layers.2.mlp.up_proj.qweight": np.zeros((8, 256), np.int32)}),
            r"reshape|dimensions",
        ),
        (
            lambda t: t[f"{TEXT}.layers.1.self_attn.q_proj.scales"].__setitem__((0, 0), np.nan),
            r"layers\.1\.self_attn\.q_proj\.scales: not all scales are finite",
        ),
        (
            lambda t: t[f"{TEXT}.layers.1.self_attn.q_proj.g_idx"].__setitem__(0, 10**6),
            r"layers\.1\.self_attn\.q_proj\.g_idx: inputs are not in consecutive groups of \d+",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Any, message: str, gptq: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    bundle = damaged(gptq[2], tmp_path / "damaged", change)
    with pytest.raises(BundleError, match=message):
        load_backend(bundle)


def test_safetensors_is_asked_for(gptq: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load(gptq[2])
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "safetensors":
            raise ModuleNotFoundError(name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match="safetensors is not installed") as caught:
        load_backend(bundle)
    assert "[packed]" in str(caught.value.hint)


def test_a_set_with_gaps_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    weights = build_weight_set(
        qwen3_vl, tmp_path / "set", choose=lambda name: None if "layers.2.mlp.down" in name else G32
    )
    with pytest.raises(InputError, match=r"layers\.2\.mlp\.down_proj is not quantized, and readers of gptq"):
        export(qwen3_vl, weights, tmp_path / "out", "gptq")


def test_a_format_without_a_set_is_refused(qwen3_vl: Path, tmp_path: Path) -> None:
    arguments = ["export", "--checkpoint", str(qwen3_vl), "--format", "awq", "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="format awq is written from a weight set"):
        cli.main(arguments, standalone_mode=False)
