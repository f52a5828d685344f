"""Sessions against transformers' generate on whole pictures, and how a session behaves."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image

from edgetune_runtime import Session
from edgetune_runtime.backends import load_backend
from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, ImageError, InputError, MissingDependency
from served import questions

FAMILIES = ["qwen3_vl", "qwen2_5_vl"]
SIZES = [(160, 120), (333, 90), (71, 400), (128, 128)]  # width, height in pixels


def picture(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def session(qwen3_vl_bundle: Path) -> Session:
    return Session.load(qwen3_vl_bundle, threads=1)


def transformers_answer(*arguments: Any, **options: Any) -> str:
    """Return what transformers answers; where it is not installed the test is skipped."""
    pytest.importorskip("transformers")
    from reference import greedy_text

    return greedy_text(*arguments, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
def test_answers_equal_transformers(family: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    session = Session.load(request.getfixturevalue(f"{family}_bundle"), threads=1)
    image, eos = picture(*size), list(session.bundle.eos)
    expected = transformers_answer(
        request.getfixturevalue(family), image, "Where is the owl?", max_new_tokens=12, eos=eos
    )
    assert session.ask(image, "Where is the owl?", max_new_tokens=12) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_is_answered_as_by_transformers(family: str, request: pytest.FixtureRequest) -> None:
    """It is read in several chunks, the picture at the beginning of the first."""
    session = Session.load(request.getfixturevalue(f"{family}_bundle"), threads=1)
    image, words, eos = picture(160, 120), "Where is the owl? " * 110, list(session.bundle.eos)
    expected = transformers_answer(request.getfixturevalue(family), image, words, max_new_tokens=12, eos=eos)
    assert session.ask(image, words, max_new_tokens=12) == expected


def test_a_smaller_picture_is_what_transformers_makes_of_it(
    qwen3_vl: Path, qwen3_vl_bundle: Path, tmp_path: Path
) -> None:
    limited = tmp_path / "limited"
    shutil.copytree(qwen3_vl, limited)
    config = json.loads((limited / "preprocessor_config.json").read_text())
    config["size"]["longest_edge"] = 96 * 64
    (limited / "preprocessor_config.json").write_text(json.dumps(config))
    with Session.load(qwen3_vl_bundle, threads=1, max_pixels=96 * 64) as session:
        assert session.bundle.limits.max_image_tokens == 6
        image, eos = picture(333, 190), list(session.bundle.eos)
        expected = transformers_answer(limited, image, "Where is the owl?", max_new_tokens=12, eos=eos)
        assert session.ask(image, "Where is the owl?", max_new_tokens=12) == expected


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (1 << 40, "is over the [0-9]+ that it was exported for"),
        (100, "max_pixels 100 is less than one image token"),
        (0, "max_pixels must be"),
        (True, "max_pixels must be"),
    ],
)
def test_a_limit_of_pictures_that_cannot_be(qwen3_vl_bundle: Path, limit: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Session.load(qwen3_vl_bundle, max_pixels=limit)


def test_text_without_an_image(session: Session, qwen3_vl: Path) -> None:
    expected = transformers_answer(qwen3_vl, None, "Who are you?", max_new_tokens=12, eos=list(session.bundle.eos))
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
    images = [picture(*size) for size in ((100, 80), (100, 80), (64, 64), (100, 80))]
    vision = [session.answer(image, "x", max_new_tokens=1).timings.vision > 0 for image in images]
    assert vision == [True, False, True, True]


def test_timings_cover_the_answer(session: Session) -> None:
    stream = session.stream(picture(200, 120), "x", max_new_tokens=5)
    assert stream.timings is None
    list(stream)
    answer = session.answer(picture(200, 130), "x", max_new_tokens=5)
    for timings in (stream.timings, answer.timings):
        assert timings is not None
        parts = timings.preprocess + timings.vision + timings.prefill + timings.decode
        assert min(timings.preprocess, timings.vision, timings.prefill, timings.decode) > 0
        assert parts == pytest.approx(timings.total)
        assert 1 <= timings.tokens <= 5


def test_ground_is_short_for_the_answer_to_the_request(session: Session) -> None:
    image = picture(320, 100)
    found = session.ground(image, "the owl", max_new_tokens=20)
    answer = session.answer(image, "Locate the owl and output its bbox coordinates in JSON format.", max_new_tokens=20)
    assert answer.detections == found
    # A random model writes no boxes by itself: that is reported, not raised.
    free = session.answer(image, session.request("the owl"), max_new_tokens=20, constrained=False)
    assert free.status == "unparsed" and free.problem
    assert session.ground(image, "the owl", max_new_tokens=20, constrained=False) == []
    # Other words than those of a request are answered freely.
    assert session.answer(image, "Locate the owl", max_new_tokens=20).status == "unparsed"


@pytest.mark.parametrize("cached", [0, 8])
def test_several_phrases_are_answered_as_one_by_one_and_encoded_once(qwen3_vl_bundle: Path, cached: int) -> None:
    phrases, image = ["the owl", "the left clock", "a cup"], picture(120, 100)
    with Session.load(qwen3_vl_bundle, threads=1, cached_images=cached) as session:
        together = session.answer(image, [session.request(phrase) for phrase in phrases], max_new_tokens=8)
        alone = [session.answer(image, session.request(phrase), max_new_tokens=8) for phrase in phrases]
        # Passes of other widths round otherwise.
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        assert [answer.refusal_score for answer in together] == pytest.approx(
            [one.refusal_score for one in alone], abs=1e-4
        )
        assert [answer.timings.vision > 0 for answer in together] == [True, False, False]
        assert session.ground(image, tuple(phrases), max_new_tokens=8) == [answer.detections for answer in alone]
        assert session.ground(image, [], max_new_tokens=8) == []


def test_a_further_phrase_is_read_from_the_end_of_its_picture(qwen3_vl_bundle: Path) -> None:
    """Also in a later call, by a stream, and after a longer one; not after another picture."""
    image, other = picture(200, 160), picture(64, 64)
    with Session.load(qwen3_vl_bundle, threads=1) as session, Session.load(qwen3_vl_bundle, threads=1) as fresh:

        def known(words: str, shown: Image.Image = image) -> int:
            """Tokens that were known; the answer is that of a session which was asked about another picture before."""
            fresh.answer(picture(90, 40), "x", max_new_tokens=1)
            found = session.answer(shown, words, max_new_tokens=6)
            anew = fresh.answer(shown, words, max_new_tokens=6)
            assert anew.timings.known == 0
            assert found == anew and found.prompt_tokens == anew.prompt_tokens
            assert [item.score for item in found.detections] == [item.score for item in anew.detections]
            return found.timings.known

        assert known("the owl") == 0
        shared = known("a clock")
        assert shared > 20 and known("the third clock from the left, behind the owl") == shared
        assert known("the owl " * 100) == shared  # for which a larger cache is made
        assert known("the owl") == shared
        assert known("the owl", other) == 0 and known("the owl") == 0
        stream = session.stream(image, "What is it?", max_new_tokens=6)
        assert "".join(stream).strip() == fresh.ask(image, "What is it?", max_new_tokens=6)
        assert stream.timings is not None and stream.timings.known == shared
        unread = session.stream(image, "What is it?", max_new_tokens=6)
        next(unread)
        assert known("a clock") == shared


def test_prefixes_of_other_pictures_are_kept_within_their_budget(qwen3_vl_bundle: Path) -> None:
    images = [picture(200, 160), picture(160, 200), picture(250, 120)]

    def asked(session: Session, words: str) -> list[tuple[str, bool]]:
        """The answers about all pictures in turn, and whether each had been read."""
        answers = [session.answer(image, words, max_new_tokens=6) for image in images]
        return [(answer.text, answer.timings.known > 0) for answer in answers]

    with Session.load(qwen3_vl_bundle, threads=1) as session:
        plain = [text for text, known in asked(session, "the owl") if not known]
        other = [text for text, known in asked(session, "a clock, far away") if not known]
    assert len(plain) == len(other) == 3
    with Session.load(qwen3_vl_bundle, threads=1, prefix_cache_mb=100) as session:
        assert asked(session, "the owl") == [(text, False) for text in plain]
        for _ in range(2):
            assert asked(session, "a clock, far away") == [(text, True) for text in other]
            assert asked(session, "the owl") == [(text, True) for text in plain]
        assert session._reader.prefixes._kept, "nothing is kept"
        size = max(saved.nbytes for saved in session._reader.prefixes._kept.values())
    with Session.load(qwen3_vl_bundle, threads=1, prefix_cache_mb=100) as session:
        session._reader.prefixes.limit = size  # one fits
        asked(session, "the owl")
        assert not any(known for _, known in asked(session, "the owl"))
        assert len(session._reader.prefixes._kept) <= 1


def test_threads_queue_and_each_gets_its_own_answer(session: Session) -> None:
    images = [picture(60 + 20 * number, 80) for number in range(6)]
    alone = [session.answer(image, "Where is it?", max_new_tokens=12).text for image in images]
    asked = [session.ask(image, "What is it?", max_new_tokens=12) for image in images]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            answers = pool.map(lambda image: session.answer(image, "Where is it?", max_new_tokens=12).text, images)
            words = pool.map(lambda image: session.ask(image, "What is it?", max_new_tokens=12), images)
            assert list(answers) == alone and list(words) == asked


def test_a_stream_that_was_not_read_is_ended_by_the_next_call(session: Session) -> None:
    first, second = picture(90, 90), picture(140, 70)
    expected = session.ask(second, "And this?", max_new_tokens=16)
    half = session.stream(first, "What is this?", max_new_tokens=16)
    next(half)
    other = session.stream(second, "And this?", max_new_tokens=16)
    pieces = [next(other)]
    with pytest.raises(InputError, match="this stream was ended by a later call") as caught:
        next(half)
    assert "to its end" in str(caught.value.hint) and half.timings is None
    assert "".join([*pieces, *other]).strip() == expected
    assert list(other) == []  # read to its end, it stays ended


def test_a_closed_session_says_so(qwen3_vl_bundle: Path) -> None:
    with Session.load(qwen3_vl_bundle, threads=1) as session:
        stream = session.stream(None, "x", max_new_tokens=4)
    session.close()  # again
    for call in (lambda: session.ground(picture(64, 64), "x"), lambda: session.ask(None, "x"), session.warm_up):
        with pytest.raises(InputError, match="the session is closed"):
            call()
    with pytest.raises(InputError, match="ended by a later call"):
        next(stream)


def test_warming_up_leaves_answers_alone(qwen3_vl_bundle: Path, session: Session) -> None:
    with Session.load(qwen3_vl_bundle, threads=1) as fresh:
        assert fresh.warm_up(100, 80).vision > 0
        assert fresh.warm_up(100, 80).vision > 0  # the grey picture takes no place among the kept ones
        assert fresh.answer(picture(99, 80), "x", max_new_tokens=6) == session.answer(
            picture(99, 80), "x", max_new_tokens=6
        )


def sources(path: Path) -> dict[str, Any]:
    """One picture in every form that is taken."""
    content = path.read_bytes()
    pixels = np.asarray(Image.open(path))
    return {
        "path": path,
        "text": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "file in memory": io.BytesIO(content),
        "open file": path.open("rb"),
        "data URI": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "array": pixels,
        "turned around": np.asfortranarray(pixels),
        "tensor": Tensor(pixels),
    }


class Tensor:
    """Not an array, but numpy can read it, as it can torch's and jax's."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[np.uint8]:
        return self._pixels


def test_every_form_of_image(session: Session, tmp_path: Path) -> None:
    image = picture(90, 60)
    image.save(tmp_path / "image.png")
    expected = session.ask(image, "x", max_new_tokens=4)
    for form, source in sources(tmp_path / "image.png").items():
        assert session.ask(source, "x", max_new_tokens=4) == expected, form


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "not an image: None, which cameras"),
        ([[0, 0], [0, 0]], "not an image: list"),
        ((True, np.zeros((4, 4, 3), np.uint8)), "not an image: tuple"),
        ({"image": "a.png"}, "not an image: dict"),
        (0, "not an image: int"),
        (io.StringIO("text"), "the file object gives text, not bytes"),
        ("data:image/png;base64,!", "image: cannot be read|not an image|not valid base64"),
        ("data:image/png,abc", "a data URI must be data:image/...;base64"),
        ("rtsp://camera/stream", "rtsp:/camera/stream: no such image file"),
        ("a\0b.png", "no such image file"),
        (b"", "not an image"),
        (np.zeros((4, 4, 3), np.float32), "must be uint8, got float32"),
        (np.zeros((3, 40, 40), np.uint8), r"got \[3, 40, 40\]"),
        (np.zeros((0, 4, 3), np.uint8), "the image is empty"),
        (np.zeros((10_000, 10_000), np.uint8), "over the limit of 89478485"),
    ],
)
def test_what_is_no_image_is_one_error(session: Session, source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        session.ground(source, "x", max_new_tokens=2)


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("  ", "the phrase is empty"),
        (None, "a phrase is a text, got NoneType"),
        (b"cup", "a phrase is a text, got bytes"),
    ],
)
def test_what_is_no_phrase_is_one_error(session: Session, phrase: Any, message: str) -> None:
    for given in (phrase, ["a cup", phrase]):
        with pytest.raises(InputError, match=message):
            session.ground(picture(64, 64), given)
    with pytest.raises(InputError, match="a prompt is a text, got int"):
        session.answer(picture(64, 64), 5)  # type: ignore[call-overload]


def test_threads_that_share_a_stream_share_its_pieces(session: Session) -> None:
    image = picture(100, 80)
    stream = session.stream(image, "What is this?", max_new_tokens=20)
    pieces: list[str] = []
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda _: pieces.extend(stream), range(4)):
            pass
    assert "".join(pieces).strip() == session.ask(image, "What is this?", max_new_tokens=20)


@pytest.mark.parametrize(
    ("size", "message"),
    [((0, 5), "0x5"), ((-1, 5), "-1x5"), ((10**6, 10**6), "over the limit"), ((1.5, 3), "whole numbers of pixels")],
)
def test_warming_up_for_pictures_that_cannot_be(session: Session, size: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.warm_up(*size)


def test_limits_are_errors(session: Session) -> None:
    image = picture(64, 64)
    with pytest.raises(
        InputError, match=r"the prompt takes \d+ tokens and the answer up to 5000: over the bundle's 1088"
    ):
        session.ask(image, "x", max_new_tokens=5000)
    for wrong in (0, -1, 12.5, "4"):
        with pytest.raises(InputError, match="max_new_tokens must be a whole number of at least 1"):
            session.ask(image, "x", max_new_tokens=wrong)  # type: ignore[arg-type]
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


def test_weights_that_were_altered_are_refused_though_they_load(qwen3_vl_bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "bundle"
    shutil.copytree(qwen3_vl_bundle, altered)
    path = altered / "onnx/decoder_model_merged.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Session.load(altered, verify=False, threads=1).close()
    with pytest.raises(BundleError, match=r"decoder_model_merged\.onnx\.data: sha256 differs"):
        Session.load(altered, threads=1)


def test_features_of_pictures_are_kept_within_a_budget_of_memory(
    qwen3_vl_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune_runtime.reader._CACHED_BYTES", 3 * 16 * 128 * 4)  # 16 tokens, from three layers

    def encoded(session: Session, size: int) -> bool:
        return session.answer(picture(size, size), "Where?", max_new_tokens=1).timings.vision > 0

    with Session.load(qwen3_vl_bundle, threads=1) as session:
        assert [encoded(session, size) for size in (64, 65, 64, 65)] == [True, True, False, False]
        assert [encoded(session, size) for size in (256, 256)] == [True, False]  # over the budget, but the last one
        assert [encoded(session, size) for size in (64, 256)] == [True, True]


def test_a_graph_that_does_not_load_is_a_bundle_error(qwen3_vl_bundle: Path, tmp_path: Path) -> None:
    altered = tmp_path / "bundle"
    shutil.copytree(qwen3_vl_bundle, altered)
    (altered / "onnx/decoder_model_merged.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder_model_merged.onnx: onnxruntime .* cannot load it"):
        Session.load(altered, verify=False)


def altered_manifest(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle with another `result.bundle` in its manifest."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["result"]["bundle"])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_family_of_a_later_release_answers_the_same(qwen3_vl_bundle: Path, session: Session, tmp_path: Path) -> None:
    folder = altered_manifest(qwen3_vl_bundle, tmp_path / "later", lambda told: told.update(family="qwen9_vl"))
    with Session.load(folder, threads=1) as later:
        for call in (later.answer, session.answer):
            assert call(picture(120, 90), later.request("the owl"), max_new_tokens=12) == session.answer(
                picture(120, 90), session.request("the owl"), max_new_tokens=12
            )


def test_a_draft_of_a_large_file_gives_nearly_the_boxes(tiny_bundle: Path, tiny_scenes: Path) -> None:
    """In pixels of the file's picture, which is four times as large as what is decoded of it."""
    with (
        Session.load(tiny_bundle, threads=1) as session,
        Session.load(tiny_bundle, threads=1, draft=True) as drafting,
    ):
        found = []
        for asked in questions(tiny_scenes):
            image, file = Image.open(io.BytesIO(asked.picture)).convert("RGB"), io.BytesIO()
            image.resize((4 * image.width, 4 * image.height)).save(file, "JPEG", quality=95)
            whole, draft = (each.ground(file.getvalue(), asked.phrase) for each in (session, drafting))
            assert len(whole) == len(draft)
            found += [overlap(one.box, other.box) for one, other in zip(whole, draft, strict=True)]
            again = drafting.answer(file.getvalue(), drafting.request(asked.phrase))
            assert again.timings.vision == 0  # it is known by what was decoded, and by its own size
    assert len(found) > 10
    assert np.mean(found) > 0.95


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union."""
    sides = [min(one[2 + axis], other[2 + axis]) - max(one[axis], other[axis]) for axis in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def without_raw_pixels(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle as it was written before there was an encoder for raw pixels."""
    altered_manifest(bundle, folder, lambda told: told["files"].pop("vision_pixels"))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["onnx/vision_encoder_pixels.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "onnx/vision_encoder_pixels.onnx").unlink()
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bundle_without_the_encoder_for_raw_pixels_answers_the_same(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = request.getfixturevalue(f"{family}_bundle")
    with (
        Session.load(bundle, threads=1) as session,
        Session.load(without_raw_pixels(bundle, tmp_path / "older"), threads=1) as older,
    ):
        for size in SIZES:
            told, expected = (each.answer(picture(*size), "Where is the owl?") for each in (session, older))
            assert told.text == expected.text


def test_raw_pixels_give_the_boxes_of_normalised_ones(tiny_bundle: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    """To a pixel: in a trained model's int8 encoder a value at the border of two codes may fall on either side."""
    with (
        Session.load(tiny_bundle, threads=1) as session,
        Session.load(without_raw_pixels(tiny_bundle, tmp_path / "older"), threads=1) as older,
    ):
        found = 0
        for asked in questions(tiny_scenes):
            ours, theirs = (each.ground(asked.picture, asked.phrase) for each in (session, older))
            assert [one.label for one in ours] == [one.label for one in theirs]
            np.testing.assert_allclose([one.box for one in ours], [one.box for one in theirs], atol=1)
            found += len(ours)
    assert found > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told["image"].update(patch_size=8, merge_size=4), "make patches of .* but the vision encoder"),
        (
            lambda told: (told["files"].pop("vision_pixels"), told["image"].update(temporal_patch_size=1)),
            "make patches of .* but the vision encoder",
        ),
        (lambda told: told["model"].update(layers=99), "model.layers is 99 in the manifest"),
        (lambda told: told["model"].update(hidden=99), "model.hidden is 99"),
        (lambda told: told["model"].update(deepstack=0), "model.deepstack is 0"),
        (lambda told: told["model"].update(vocabulary=10**6), "model.vocabulary is 1000000"),
        (
            lambda told: told["files"].update(dict.fromkeys(("vision", "vision_pixels"), told["files"]["decoder"])),
            "has no input pixel_values",
        ),
        (lambda told: told["files"].update(vision_pixels=told["files"]["decoder"]), "cannot load it"),
        (lambda told: told["files"].update(decoder=told["files"]["vision"]), "has no input inputs_embeds"),
        (lambda told: told["files"].update(embed=told["files"]["vision"]), "has no input input_ids"),
        (lambda told: told["files"].update(tokenizer="config.json"), "not a tokenizer"),
        (lambda told: told["tokens"].update(image=told["tokens"]["vision_start"]), "tokens.image is"),
        (lambda told: told["tokens"].update(eos=[1]), "tokens.eos .* lacks"),
        (lambda told: told["chat"].update(image_token="<|video_pad|>"), "tokens.image is"),
        (lambda told: told.update(format="openvino9"), "no engine here reads format 'openvino9'"),
        (lambda told: told.update(format="gptq"), "the manifest has no 'packed'"),
    ],
)
def test_a_manifest_at_odds_with_the_graphs_or_the_tokenizer_is_refused(
    qwen3_vl_bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises((BundleError, InputError), match=message):
        Session.load(altered_manifest(qwen3_vl_bundle, tmp_path / "bundle", change), threads=1)


def test_devices_and_threads_are_checked(qwen3_vl_bundle: Path) -> None:
    bundle = Bundle.load(qwen3_vl_bundle)
    for device in ("tpu", "cuda:x", "cpu:1", "cuda:", ""):
        with pytest.raises(InputError, match=f"unknown device '{device}'"):
            load_backend(bundle, device=device)
    for threads in (0, -1, "2", 1.0):
        with pytest.raises(InputError, match="threads must be a whole number of at least 1"):
            load_backend(bundle, threads=threads)  # type: ignore[arg-type]


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
