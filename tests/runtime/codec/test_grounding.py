"""The codec: boxes to text and back, for every family, and what it makes of text that models really write."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgetune_runtime.codec.grounding import Geometry, encode, parse, to_image, to_model
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES, Family

HD = Geometry(width=1920, height=1080, resized_width=1288, resized_height=728)
QWEN3, QWEN2_5 = FAMILIES["qwen3_vl"].box_format, FAMILIES["qwen2_5_vl"].box_format
BOX = [[96.0, 108.0, 960.0, 540.0]]
families = st.sampled_from(list(FAMILIES.values()))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Draw an image size and the size that transformers' own rule resizes it to."""
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

    width = draw(st.integers(8, 5000))
    height = draw(st.integers(max(8, math.ceil(width / 200)), min(5000, width * 200)))
    resized_height, resized_width = reference_resize(height, width, factor=28, min_pixels=3136, max_pixels=1003520)
    return Geometry(width, height, resized_width, resized_height)


@st.composite
def boxes_in(draw: st.DrawFn, geometry: Geometry) -> list[list[float]]:
    """Draw boxes that cover at least 4 % of each side, so that every family can write them."""
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        sides = []
        for size in (geometry.width, geometry.height):
            extent = draw(st.floats(0.04, 1.0)) * size
            start = draw(st.floats(0.0, 1.0)) * (size - extent)
            sides.append((start, min(start + extent, float(size))))
        boxes.append([sides[0][0], sides[1][0], sides[0][1], sides[1][1]])
    return boxes


def half_step(geometry: Geometry, family: Family) -> np.ndarray:
    """Return half a quantization step in original pixels, worked out from the conventions in the papers."""
    width, height = geometry.width, geometry.height
    if family.name == "llava":  # two decimals of the longer side
        return np.full(4, 0.005 * max(width, height))
    if family.name == "llava_onevision":  # two decimals of each side
        return np.array([width, height] * 2) * 0.005
    if family.name == "qwen2_5_vl":  # whole pixels of the resized image
        return np.array([width / geometry.resized_width, height / geometry.resized_height] * 2) / 2
    return np.array([width, height] * 2) / 2000


@given(st.data(), families, geometries())
def test_a_box_comes_back_within_half_a_step(data: st.DataObject, family: Family, geometry: Geometry) -> None:
    boxes = data.draw(boxes_in(geometry))
    steps = 2 * half_step(geometry, family)
    sides = np.array(boxes)[:, 2:] - np.array(boxes)[:, :2]
    assume((sides > steps[:2]).all())  # thinner boxes cannot be written, see below
    labels = [f"object {i}" for i in range(len(boxes))]

    answer = parse(encode(boxes, labels, geometry, family.box_format), geometry, family.box_format)

    assert answer.problem is None and answer.complete and not answer.refused
    read = np.array([detection.box for detection in answer.detections])
    assert read.shape == (len(boxes), 4)
    assert (np.abs(read - boxes) <= half_step(geometry, family) * (1 + 1e-9)).all()
    if family.box_format.style != "plain":
        assert [detection.label for detection in answer.detections] == labels


@given(st.data(), families, geometries())
def test_frames_are_inverse_and_keep_the_edges(data: st.DataObject, family: Family, geometry: Geometry) -> None:
    boxes, form = np.array(data.draw(boxes_in(geometry))), family.box_format
    np.testing.assert_allclose(to_image(to_model(boxes, geometry, form), geometry, form), boxes, atol=1e-9 * 5000)
    whole = [[0, 0, geometry.width, geometry.height]]
    np.testing.assert_allclose(to_image(to_model(whole, geometry, form), geometry, form), whole, atol=1e-9)


@given(st.data(), families, geometries())
def test_what_was_read_can_be_written_again(data: st.DataObject, family: Family, geometry: Geometry) -> None:
    assume(family.name != "llava")  # rounding may put its box into the padding, which is no place in the image
    text = encode([[0, 0, geometry.width, geometry.height]], ["all"], geometry, family.box_format)
    box = parse(text, geometry, family.box_format).detections[0]
    assert encode([box.box], [box.label], geometry, family.box_format) == text


@given(st.text(), families)
def test_any_text_can_be_parsed(text: str, family: Family) -> None:
    answer = parse(text, HD, family.box_format)
    assert (answer.status == "unparsed") == (not answer.detections and not answer.refused)
    if answer.status == "unparsed":
        assert answer.problem


@given(st.text(alphabet="[]{}(),.\"'<>|/:-_ 0123456789reflboxpand\\\n", max_size=80), families)
def test_box_like_noise_can_be_parsed(text: str, family: Family) -> None:
    for detection in parse(text, HD, family.box_format).detections:
        assert detection.box[0] < detection.box[2] and detection.box[1] < detection.box[3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3_vl", '[{"bbox_2d": [50, 100, 500, 500], "label": "the cup"}]'),
        ("smolvlm", '[{"bbox_2d": [50, 100, 500, 500], "label": "the cup"}]'),
        ("qwen2_5_vl", '[{"bbox_2d": [64, 73, 644, 364], "label": "the cup"}]'),
        (
            "qwen2_vl",
            "<|object_ref_start|>the cup<|object_ref_end|><|box_start|>(50,100),(500,500)<|box_end|>",
        ),
        ("qwen_vl", "<ref>the cup</ref><box>(50,100),(500,500)</box>"),
        ("internvl", "<ref>the cup</ref><box>[[50, 100, 500, 500]]</box>"),
        # y is padded by (1920 - 1080) / 2 = 420: (108 + 420) / 1920 and (540 + 420) / 1920
        ("llava", "[0.05, 0.28, 0.50, 0.50]"),
    ],
)
def test_text_of_each_family(name: str, text: str) -> None:
    assert encode(BOX, ["the cup"], HD, FAMILIES[name].box_format) == text


def test_labels_survive_json() -> None:
    labels = ['the "red" cup\n', "der Käfer 🐞 [1] {x}", "it's", "a\\b"]
    answer = parse(encode(BOX * 4, labels, HD, QWEN3), HD, QWEN3)
    assert [detection.label for detection in answer.detections] == labels
    assert [item["label"] for item in json.loads(answer.text)] == labels


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_absent_object(family: Family) -> None:
    answer = parse(encode(np.zeros((0, 4)), [], HD, family.box_format), HD, family.box_format)
    assert answer.refused and answer.status == "refused"
    assert answer.complete and answer.problem is None and answer.detections == []


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_truncation_is_reported_or_harmless(family: Family) -> None:
    boxes = [*BOX, [0.0, 0.0, 1920.0, 1080.0]]
    text = encode(boxes, ["the cup", "all of it"], HD, family.box_format)
    whole = parse(text, HD, family.box_format).detections
    for length in range(1, len(text)):
        answer = parse(text[:length], HD, family.box_format)
        # What is read from the part is what the whole says, never an invention.
        boxes_read = [detection.box for detection in answer.detections]
        assert boxes_read == [detection.box for detection in whole][: len(boxes_read)], text[:length]
        if answer.complete:  # cut exactly between two boxes
            assert text[:length] == encode(boxes[:1], ["the cup"], HD, family.box_format) and answer.problem is None
        else:
            assert answer.problem and "breaks off" in answer.problem


FENCED = '```json\n[\n\t{"bbox_2d": [50, 100, 500, 500], "label": "the cup"}\n]\n```'


@pytest.mark.parametrize(
    "text",
    [
        FENCED,
        FENCED + "<|im_end|>",
        '```json\n[\n\t{"bbox_2d": [50, 100, 500, 500], "label": "the cup"}\n]',
        "Sure, here it is [see below]:\n" + FENCED + "\nLet me know (1, 2) if you need more!",
        '{"bbox_2d": [50, 100, 500, 500], "label": "the cup"}',
        '[{"bbox": [50, 100, 500, 500], "label": "the cup"}]',
        "[{'bbox_2d': [50, 100, 500, 500], 'label': 'the cup'}]",
        '[{"label": "the cup", "bbox_2d": [50.0, 100, 5e2, 500], "sub_label": null}]',
        '{"objects": [{"bbox_2d": [50, 100, 500, 500], "label": "the cup"}]}',
        '[{"bbox_2d": [[50, 100, 500, 500]], "label": "the cup"}]',
    ],
)
def test_what_models_really_write(text: str) -> None:
    answer = parse(text, HD, QWEN3)
    assert [(detection.box, detection.label) for detection in answer.detections] == [((96, 108, 960, 540), "the cup")]
    assert answer.complete and answer.problem is None and answer.text == text


@pytest.mark.parametrize("label", ["shelf ]", "}{", "a [b] c"])
def test_brackets_in_single_quotes(label: str) -> None:
    answer = parse(f"[{{'bbox_2d': [50, 100, 500, 500], 'label': '{label}'}}]", HD, QWEN3)
    assert [found.label for found in answer.detections] == [label] and answer.complete


def test_several_boxes_in_several_blocks() -> None:
    text = f"First:\n{FENCED}\nSecond:\n{FENCED.replace('cup', 'mug')}"
    assert [found.label for found in parse(text, HD, QWEN3).detections] == ["the cup", "the mug"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # Decoders that skip special tokens leave the tags out.
        ("qwen2_vl", "the cup(50,100),(500,500)"),
        (
            "qwen2_vl",
            "<|object_ref_start|> the cup <|object_ref_end|><|box_start|>(50, 100), (500, 500)<|box_end|><|im_end|>",
        ),
        ("qwen_vl", "Here: <ref> the cup</ref><box>(50,100),(500,500)</box>."),
        ("internvl", "```\n<ref>the cup</ref><box>[[50, 100, 500, 500]]</box>\n```"),
    ],
)
def test_tagged_text_with_variations(name: str, text: str) -> None:
    answer = parse(text, HD, FAMILIES[name].box_format)
    assert [(found.box, found.label) for found in answer.detections] == [((96, 108, 960, 540), "the cup")]
    assert answer.problem is None


def test_one_reference_with_several_boxes() -> None:
    text = "<ref>cups</ref><box>[[50, 100, 500, 500], [0, 0, 10, 10]]</box>"
    assert [found.label for found in parse(text, HD, FAMILIES["internvl"].box_format).detections] == ["cups", "cups"]
    text = "<ref>cups</ref><box>(50,100),(500,500)</box><box>(0,0),(10,10)</box>"
    assert [found.label for found in parse(text, HD, FAMILIES["qwen_vl"].box_format).detections] == ["cups", "cups"]


@pytest.mark.parametrize(
    "text", ["[]", "```json\n[]\n```", "There are none.", "None", "Nothing like it:\n```json\n[]\n```"]
)
def test_refusals(text: str) -> None:
    answer = parse(text, HD, QWEN2_5)
    assert answer.refused and answer.problem is None


@pytest.mark.parametrize(
    ("text", "problem", "kept"),
    [
        ('[{"bbox_2d": [500, 100, 50, 500], "label": "cup"}]', "x1 >= x2", 0),
        ('[{"bbox_2d": [50, 500, 500, 500], "label": "cup"}]', "y1 >= y2", 0),
        ('[{"bbox_2d": [50, 100, 500, 1002], "label": "cup"}]', "outside the 1920x1080 image", 1),
        ('[{"bbox_2d": [-2, 100, 500, 500], "label": "cup"}]', "outside the 1920x1080 image", 1),
        ('[{"bbox_2d": [50, 100, 500], "label": "cup"}]', "not four numbers", 0),
        ('[{"bbox_2d": ["50", 100, 500, 500], "label": "cup"}]', "not four numbers", 0),
        ('[{"bbox_2d": [50, 100, NaN, 500], "label": "cup"}]', "not four numbers", 0),
        ('[{"point_2d": [50, 100], "label": "cup"}]', "no bbox_2d", 0),
        ('[{"label": "cup"}]', "no bbox_2d", 0),
        ('[{"bbox_2d": [50, 100, 500 500]}]', "not readable", 0),
        ("The cup is on the table.", "no box", 0),
        ("", "no box", 0),
    ],
)
def test_problems_are_reported_and_nothing_is_fixed(text: str, problem: str, kept: int) -> None:
    answer = parse(text, HD, QWEN3)
    assert answer.problem and problem in answer.problem
    assert len(answer.detections) == kept and not answer.refused


def test_a_box_outside_is_kept_as_written() -> None:
    answer = parse('[{"bbox_2d": [0, 0, 1500, 1000], "label": "cup"}]', HD, QWEN3)
    assert answer.detections[0].box == (0, 0, 2880, 1080)


def test_good_boxes_survive_a_bad_neighbour() -> None:
    text = '[{"bbox_2d": [9, 9, 5, 5], "label": "bad"}, {"bbox_2d": [50, 100, 500, 500], "label": "good"}]'
    answer = parse(text, HD, QWEN3)
    assert [found.label for found in answer.detections] == ["good"]
    assert answer.problem and "x1 >= x2" in answer.problem


def test_an_object_that_was_cut_off_is_not_guessed() -> None:
    answer = parse('[{"bbox_2d": [50, 100, 500, 500], "label": "the c', HD, QWEN3)
    assert answer.detections == [] and not answer.complete


def test_many_problems_make_a_short_report() -> None:
    answer = parse(json.dumps([{"bbox_2d": [5, 5, 1, 1], "label": "x"}] * 50), HD, QWEN3)
    assert answer.problem and "and 47 more" in answer.problem


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        (BOX, [], "1 boxes but 0 labels"),
        ([[0, 0, 2000, 100]], ["cup"], "outside the 1920x1080 image"),
        ([[-1, 0, 200, 100]], ["cup"], "outside the 1920x1080 image"),
        ([[200, 0, 100, 100]], ["cup"], "x1 >= x2"),
        ([[100, 50, 200, 50]], ["cup"], "y1 >= y2"),
        ([[0, 0, float("nan"), 100]], ["cup"], "finite"),
        ([[0, 0, 100]], ["cup"], "shape"),
        ([[100.0, 0, 100.5, 500]], ["cup"], "too thin"),
    ],
)
def test_encode_refuses_bad_boxes(boxes: list[list[float]], labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(boxes, labels, HD, QWEN3)


def test_encode_refuses_labels_that_would_break_the_text() -> None:
    with pytest.raises(InputError, match="cannot be written"):
        encode(BOX, ["</ref>"], HD, FAMILIES["qwen_vl"].box_format)
