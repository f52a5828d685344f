"""Sessions against transformers' generate on whole pictures, and how a session behaves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edgetune_runtime import Session
from edgetune_runtime.backends import load_backend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, ImageError, InputError, MissingDependency
from edgetune_runtime.images.load import ImageSource
from reference import greedy_text

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]
SIZES = [(160, 120), (333, 90), (71, 400), (128, 128)]  # width, height in pixels


def picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def session(qwen3_vl_bundle: Path) -> Session:
    return Session.load(qwen3_vl_bundle, threads=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_answers_equal_transformers(family: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    session = Session.load(request.getfixturevalue(f"{family}_bundle"), threads=1)
    image, eos = picture(*size), list(session.bundle.eos)
    expected = greedy_text(request.getfixturevalue(family), image, "Where is the owl?", max_new_tokens=12, eos=eos)
    assert session.ask(image, "Where is the owl?", max_new_tokens=12) == expected


def test_text_without_an_image(session: Session, qwen3_vl: Path) -> None:
    expected = greedy_text(qwen3_vl, None, "Who are you?", max_new_tokens=12, eos=list(session.bundle.eos))
    assert session.ask(None, "Who are you?", max_new_tokens=12) == expected


def test_a_stream_adds_up_to_the_answer(session: Session) -> None:
    image = picture(100, 80)
    pieces = list(session.stream(image, "What is this?", max_new_tokens=20))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == session.ask(image, "What is this?", max_new_tokens=20)


def test_earlier_answers_leave_no_trace(qwen3_vl_bundle: Path, session: Session) -> None:
    """Longer and shorter prompts in turn, and an abandoned stream, on one buffer."""
    fresh = Session.load(qwen3_vl_bundle, threads=1)
    expected = fresh.ask(picture(64, 64), "short", max_new_tokens=8)
    session.ask(picture(250, 250), "a much longer question about everything in the picture" * 9, max_new_tokens=40)
    next(iter(session.stream(picture(90, 90), "never read to its end")))
    assert session.ask(picture(64, 64), "short", max_new_tokens=8) == expected


def test_images_are_encoded_once(qwen3_vl_bundle: Path) -> None:
    session = Session.load(qwen3_vl_bundle, threads=1, cached_images=1)
    vision = []
    for image in (picture(100, 80), picture(100, 80), picture(64, 64), picture(100, 80)):
        session.ask(image, "x", max_new_tokens=1)
        assert session.last_timings is not None
        vision.append(session.last_timings.vision > 0)
    assert vision == [True, False, True, True]


def test_timings_cover_the_answer(session: Session) -> None:
    session.ask(picture(200, 120), "x", max_new_tokens=5)
    timings = session.last_timings
    assert timings is not None
    parts = timings.preprocess + timings.vision + timings.prefill + timings.decode
    assert min(timings.preprocess, timings.vision, timings.prefill, timings.decode) > 0
    assert parts == pytest.approx(timings.total)
    assert 1 <= timings.tokens <= 5


def test_ground_and_answer_speak_of_original_pixels(session: Session) -> None:
    image = picture(320, 100)
    found = session.ground(image, "the owl", max_new_tokens=20)
    answer = session.last_answer
    assert answer is not None and answer.detections == found
    request = session.bundle.family.ground_prompt.replace("{phrase}", "the owl")
    assert session.answer(image, request, max_new_tokens=20) == answer
    # A random model writes no boxes: that is reported, not raised.
    assert answer.status == "unparsed" and answer.problem


@pytest.mark.parametrize("form", ["path", "bytes", "array"])
def test_every_form_of_image(session: Session, tmp_path: Path, form: str) -> None:
    image = picture(90, 60)
    image.save(tmp_path / "image.png")
    sources: dict[str, ImageSource] = {
        "path": tmp_path / "image.png",
        "bytes": (tmp_path / "image.png").read_bytes(),
        "array": np.asarray(image),
    }
    assert session.ask(sources[form], "x", max_new_tokens=4) == session.ask(image, "x", max_new_tokens=4)


def test_limits_are_errors(session: Session) -> None:
    image = picture(64, 64)
    with pytest.raises(
        InputError, match=r"the prompt takes \d+ tokens and the answer up to 5000: over the bundle's 1088"
    ):
        session.ask(image, "x", max_new_tokens=5000)
    with pytest.raises(InputError, match="max_new_tokens must be at least 1, not 0"):
        session.ask(image, "x", max_new_tokens=0)
    with pytest.raises(InputError, match="the phrase is empty"):
        session.ground(image, "  ")
    with pytest.raises(ImageError, match="aspect ratio"):
        session.ground(picture(2010, 10), "x")


def test_an_altered_bundle_is_refused_unless_told_otherwise(qwen3_vl_bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "bundle"
    shutil.copytree(qwen3_vl_bundle, altered)
    with (altered / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(BundleError, match=r"config\.json"):
        Session.load(altered)
    Session.load(altered, verify=False)


def test_a_graph_that_does_not_load_is_a_bundle_error(qwen3_vl_bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "bundle"
    shutil.copytree(qwen3_vl_bundle, altered)
    (altered / "onnx/decoder_model_merged.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder_model_merged.onnx: onnxruntime .* cannot load it"):
        Session.load(altered, verify=False)


def test_devices_and_threads_are_checked(qwen3_vl_bundle: Path) -> None:
    bundle = Bundle.load(qwen3_vl_bundle)
    with pytest.raises(InputError, match="unknown device 'tpu'"):
        load_backend(bundle, device="tpu")
    with pytest.raises(InputError, match="threads must be at least 1"):
        load_backend(bundle, threads=0)


def test_a_float32_bundle_is_refused_on_cuda(qwen3_vl_bundle: Path) -> None:
    """Onnxruntime would run it there and give wrong answers without a word."""
    with pytest.raises(InputError, match="computes in float32, but attention on CUDA needs float16") as caught:
        Session.load(qwen3_vl_bundle, device="cuda")
    assert caught.value.hint == "export with --target cuda"


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is available")
def test_cuda_without_its_provider_names_the_package(qwen3_vl_bundle: Path) -> None:
    bundle = replace(Bundle.load(qwen3_vl_bundle), half=True)
    with pytest.raises(MissingDependency, match="CUDAExecutionProvider is not there") as caught:
        load_backend(bundle, device="cuda")
    assert caught.value.hint is not None and "onnx-gpu" in caught.value.hint
