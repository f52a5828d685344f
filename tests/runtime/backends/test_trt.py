"""The TensorRT backend on a device in main memory, against transformers; and its names against the real bindings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetune.cli import cli
from edgetune_export.check.reference import test_image as picture
from edgetune_export.check.trt import OnnxTrtBackend
from edgetune_runtime.backends.trt.engine import TrtBackend
from edgetune_runtime.backends.trt.engines import graphs_of
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import EdgetuneError, InputError, MissingDependency
from edgetune_runtime.session import Session
from edgetune_runtime.tokens import TextTokenizer
from host_tensorrt import HostDevice, host_engine
from reference import greedy_text

QUESTION = "What colour is the cactus?"


def export_trt(checkpoint: Path, output: Path, *arguments: str) -> Path:
    place = ["--checkpoint", str(checkpoint), "--format", "trt", "--output", str(output), "--max-length", "256"]
    cli.main(["export", *place, *arguments], standalone_mode=False)
    return output


@pytest.fixture(scope="module", params=[("qwen3_vl", "10.16"), ("qwen2_5_vl", "10.3")])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A checkpoint and its float16 bundle, which rounds too little to change answers."""
    family, profile = request.param
    checkpoint: Path = request.getfixturevalue(family)
    folder = tmp_path_factory.mktemp("trt") / "bundle"
    export_trt(checkpoint, folder, "--precision", "fp16", "--trt-profile", profile)
    return checkpoint, Bundle.load(folder)


def on_host(bundle: Bundle, device: HostDevice, *, chunk: int | None = None) -> TrtBackend:
    """The backend on engines that run in main memory; `chunk` limits the prefill profile."""
    facts, graphs = bundle.manifest["result"]["bundle"]["trt"], graphs_of(bundle)
    profiles = [dict(profile) for profile in graphs["decoder"].profiles]
    if chunk is not None:
        for name, (low, _, high) in profiles[1].items():
            limited = [chunk if most != least else most for least, most in zip(low, high, strict=True)]
            profiles[1][name] = [low, low, limited]
    in_place = facts["in_place"]
    return TrtBackend(
        decoder=host_engine(graphs["decoder"].model, profiles, device, in_place=in_place),
        vision=host_engine(graphs["vision"].model, graphs["vision"].profiles, device),
        embeddings=np.load(bundle.files["embed"], mmap_mode="r"),
        device=device,
        in_place=in_place,
    )


def session_of(bundle: Bundle, backend: TrtBackend) -> Session:
    return Session(bundle, backend, TextTokenizer(bundle.files["tokenizer"]))


@pytest.mark.parametrize("size", [(256, 256), (384, 160)])
def test_answers_are_those_of_transformers(bundle: tuple[Path, Bundle], size: tuple[int, int]) -> None:
    checkpoint, loaded = bundle
    device = HostDevice()
    session = session_of(loaded, on_host(loaded, device))
    image = picture(*size, seed=3)
    expected = [
        greedy_text(checkpoint, shown, QUESTION, max_new_tokens=12, eos=list(loaded.eos)) for shown in (image, None)
    ]
    assert session.ask(image, QUESTION, max_new_tokens=12) == expected[0]
    launched = device.launches
    assert launched >= 8  # all tokens after the prompt but the first, and where buffers take turns the first two
    # Without an image the DeepStack inputs must be zero again, and the last sequence's cache must not be seen.
    assert session.ask(None, QUESTION, max_new_tokens=12) == expected[1]
    assert device.launches > launched


def test_a_prompt_in_pieces_equals_one_read_at_once(bundle: tuple[Path, Bundle]) -> None:
    _, loaded = bundle
    whole, pieces = on_host(loaded, HostDevice()), on_host(loaded, HostDevice(), chunk=9)
    generator = np.random.default_rng(0)
    embeddings = whole.embed(np.arange(30, 49))  # 9 + 9 + 1 tokens
    positions = np.tile(np.arange(19), (3, 1))
    layers = loaded.model["deepstack"]
    deepstack = [generator.standard_normal(embeddings.shape).astype(np.float32) for _ in range(layers)]
    logits = []
    for backend in (whole, pieces):
        backend.reserve(40)
        first = backend.forward(embeddings, positions, deepstack).copy()
        second = backend.forward(backend.embed(np.array([7])), np.full((3, 1), 19)).copy()
        logits.append((first, second))
    for one, other in zip(*logits, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)
        assert one.argmax() == other.argmax()


def test_images_and_frames_equal_the_checker(bundle: tuple[Path, Bundle]) -> None:
    _, loaded = bundle
    files = loaded.files
    checker = OnnxTrtBackend(vision=files["vision"], decoder=files["decoder"], embeddings=files["embed"])
    grids = np.array([[1, 8, 6], [2, 4, 4]])
    patches = np.random.default_rng(1).standard_normal((80, loaded.spec.patch_values or 0))
    pixels = patches.astype(np.float32)
    images = {"pixel_values": pixels, "image_grid_thw": grids}
    ours, theirs = on_host(loaded, HostDevice()).encode_images(images), checker.encode_images(images)
    np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
    assert len(ours.deepstack) == len(theirs.deepstack) == loaded.model["deepstack"]
    for mine, reference in zip(ours.deepstack, theirs.deepstack, strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_what_does_not_fit_is_refused(bundle: tuple[Path, Bundle]) -> None:
    _, loaded = bundle
    backend = on_host(loaded, HostDevice())
    with pytest.raises(InputError, match="257 tokens, but the engine's cache has 256"):
        backend.reserve(257)
    backend.reserve(256)
    with pytest.raises(InputError, match="300 tokens in a cache of 256"):
        backend.forward(np.zeros((300, loaded.model["hidden"]), np.float32), np.zeros((3, 300), np.int64))
    side = 2 * int(np.sqrt(loaded.limits.max_image_tokens)) + 2
    width = loaded.spec.patch_values or 0
    with pytest.raises(InputError, match=r"pixel_values of shape .* the engine takes at most"):
        images = {
            "pixel_values": np.zeros((side * side, width), np.float32),
            "image_grid_thw": np.array([[1, side, side]]),
        }
        backend.encode_images(images)


def test_a_step_that_cannot_be_recorded_runs_plainly(bundle: tuple[Path, Bundle]) -> None:
    checkpoint, loaded = bundle

    class NoGraphs(HostDevice):
        def record(self, work: Any) -> Any:
            raise EdgetuneError("CUDA: cudaStreamEndCapture: operation not permitted when stream is capturing")

    expected = greedy_text(checkpoint, None, QUESTION, max_new_tokens=8, eos=list(loaded.eos))
    session = session_of(loaded, on_host(loaded, NoGraphs()))
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert session.ask(None, QUESTION, max_new_tokens=8) == expected


def test_other_devices_are_refused(bundle: tuple[Path, Bundle]) -> None:
    _, loaded = bundle
    with pytest.raises(InputError, match="TensorRT engines run on a GPU, not on cpu"):
        TrtBackend.load(loaded, device="cpu", threads=None)
    with pytest.raises(InputError, match="threads are for CPUs"):
        TrtBackend.load(loaded, device="cuda", threads=2)


def test_a_session_says_what_is_missing(bundle: tuple[Path, Bundle]) -> None:
    _, loaded = bundle
    with pytest.raises(
        (MissingDependency, EdgetuneError), match=r"TensorRT is installed|no usable NVIDIA GPU|no engine for"
    ):
        Session.load(loaded.folder, device="cuda")


NAMES = {
    "Builder": ("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ParserError": ("desc",),
    "IBuilderConfig": ("add_optimization_profile", "create_timing_cache", "set_timing_cache"),
    "IOptimizationProfile": ("set_shape",),
    "ITimingCache": ("serialize",),
    "ILogger": ("log", "ERROR", "INTERNAL_ERROR"),
    "Runtime": ("deserialize_cuda_engine",),
    "ICudaEngine": (
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_shape",
        "get_tensor_dtype",
        "get_tensor_profile_shape",
        "create_execution_context",
    ),
    "IExecutionContext": (
        "set_optimization_profile_async",
        "set_input_shape",
        "set_tensor_address",
        "get_tensor_shape",
        "execute_async_v3",
    ),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
}


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX is not installed")
def test_the_bindings_have_what_is_called() -> None:
    from edgetune_runtime.backends.trt.library import load_library

    trt = load_library("tensorrt_rtx").module
    for owner, names in NAMES.items():
        assert set(names) <= set(dir(getattr(trt, owner))), owner
    assert trt.nptype(trt.float16) is np.float16 and trt.nptype(trt.int64) is np.int64


def test_the_host_has_no_more_than_the_bindings() -> None:
    """Every method of the stand-ins is one that the bindings are tested for."""
    import host_tensorrt

    for stand_in, owner in (
        (host_tensorrt.HostEngine, "ICudaEngine"),
        (host_tensorrt.HostContext, "IExecutionContext"),
    ):
        public = {name for name in vars(stand_in) if not name.startswith("_")}
        assert public <= set(NAMES[owner]), owner


def test_the_manifest_tells_profiles_and_what_was_deferred(bundle: tuple[Path, Bundle]) -> None:
    _, loaded = bundle
    facts = json.loads((loaded.folder / "manifest.json").read_text())["result"]["bundle"]["trt"]
    assert set(facts["profiles"]) == {"vision", "decoder"} and facts["engines"] == []
    assert "edgetune-run build-engine" in facts["deferred"]
    assert isinstance(picture(64, 64, 0), Image.Image)
