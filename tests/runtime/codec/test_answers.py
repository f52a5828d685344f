"""Answers with mistakes in them: what is still read, what is refused, and that nothing is made up or ever raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune_runtime.codec.grounding import Geometry, ParsedAnswer, parse
from edgetune_runtime.families import FAMILIES

SIZE = Geometry(width=1000, height=1000, resized_width=980, resized_height=980)
QWEN3, QWEN2_5, QWEN2 = (FAMILIES[name].box_format for name in ("qwen3_vl", "qwen2_5_vl", "qwen2_vl"))
INTERNVL, LLAVA = FAMILIES["internvl"].box_format, FAMILIES["llava"].box_format
JAR = '{"bbox_2d": [40, 60, 320, 480], "label": "jar"}'
LID = '{"bbox_2d": [610, 30, 790, 95], "label": "lid"}'


def found(text: str) -> list[tuple[tuple[float, ...], str]]:
    return [(one.box, one.label) for one in parse(text, SIZE, QWEN3).detections]


JAR_FOUND, LID_FOUND = ((40, 60, 320, 480), "jar"), ((610, 30, 790, 95), "lid")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>Is it [10, 10, 20, 20]? No.</think>[{JAR}]",
        f"<think>First {LID}, or not?</think>\n\n```json\n[{JAR}]\n```",
        f"So it must be {LID}.</think><answer>[{JAR}]</answer>",  # the prompt opened the thoughts
        f"<think>a</think><think>{LID}</think> [{JAR}]",
    ],
)
def test_thoughts_are_no_answer(text: str) -> None:
    answer = parse(text, SIZE, QWEN3)
    assert found(text) == [JAR_FOUND]
    assert answer.complete and answer.problem is None


@pytest.mark.parametrize("box_format", [QWEN3, QWEN2, INTERNVL, LLAVA])
def test_an_answer_that_never_leaves_its_thoughts_has_no_box(box_format: Any) -> None:
    text = f"<think>{JAR} [0.1, 0.2, 0.3, 0.4] (1,2),(30,40) <ref>jar</ref><box>[[1, 2, 30, 40]]</box>"
    answer = parse(text, SIZE, box_format)
    assert not answer.detections and not answer.complete and not answer.refused
    assert answer.problem == "the text breaks off before the answer, in the model's thoughts"


def test_a_refusal_after_thoughts_is_a_refusal() -> None:
    assert parse("<think>I look for [1, 2, 3, 4].</think>\nNone<|im_end|>", SIZE, QWEN3).refused


@pytest.mark.parametrize(
    "text",
    [
        "The jar is at [40, 60, 320, 480].",
        "between [40, 60, 320, 480] and [610, 30, 790, 95]",
        "in [[40, 60, 320, 480]] of the picture",
        "see [1] and [2], (40, 60, 320, 480)",
        "colours [255, 0, 10, 255] are not boxes",
    ],
)
def test_brackets_in_a_sentence_are_no_box(text: str) -> None:
    answer = parse(text, SIZE, QWEN3)
    assert answer.status == "unparsed" and answer.problem == "no box in the answer"


@pytest.mark.parametrize(
    "text",
    [
        "[40, 60, 320, 480]",
        "[[40, 60, 320, 480]]",
        "The jar is here:\n[40, 60, 320, 480]\n",
        "```json\n[40, 60, 320, 480]\n```",
        "<answer>[40, 60, 320, 480]</answer>",
    ],
)
def test_a_list_on_a_line_of_its_own_is_a_box(text: str) -> None:
    assert found(text) == [((40, 60, 320, 480), "")]


def test_families_that_write_bare_lists_may_write_them_in_a_sentence() -> None:
    assert len(parse("It is at [0.10, 0.20, 0.30, 0.40].", SIZE, LLAVA).detections) == 1
    assert len(parse("the jar[[40, 60, 320, 480]] and more", SIZE, INTERNVL).detections) == 1  # its tags were skipped
    assert parse("as shown in [40, 60, 320, 480] before", SIZE, INTERNVL).status == "unparsed"


@pytest.mark.parametrize(
    "element",
    [
        '{"box_2d": [60, 40, 480, 320], "label": "jar"}',
        '{"yxyx": [60, 40, 480, 320], "label": "jar"}',
        '{"bbox_xywh": [40, 60, 280, 420], "label": "jar"}',
        '{"xywh": [40, 60, 280, 420], "label": "jar"}',
        '{"bbox_cxcywh": [180, 270, 280, 420], "label": "jar"}',
        '{"BBox-2D": [40, 60, 320, 480], "Label": "jar"}',
        '{"bbox_2d": {"x1": 40, "y1": 60, "x2": 320, "y2": 480}, "label": "jar"}',
        '{"label": "jar", "xmin": 40, "ymin": 60, "xmax": 320, "ymax": 480}',
        '{"label": "jar", "box": {"x": 40, "y": 60, "width": 280, "height": 420}}',
        '{"bbox": [40, 60, 320, 480], "name": "jar", "color": [9, 9, 99, 99]}',
        '{"bbox_2d": [40, 60, 320, 480], "text_content": "jar"}',
        '{"bbox_2d": [40, 60, 320, 480], "category": "jar"}',
        '{"objects": [{"bbox_2d": [40, 60, 320, 480], "label": "jar"}], "image_size": [640, 480]}',
    ],
)
def test_names_say_what_the_numbers_are(element: str) -> None:
    for text in (element, f"[{element}]", element.replace('"', "'")):
        assert found(text) == [JAR_FOUND], text
        assert parse(text, SIZE, QWEN3).problem is None


@pytest.mark.parametrize(
    "element",
    [
        '{"label": "jar", "color": [10, 0, 200, 255]}',
        '{"jar": [40, 60, 320, 480]}',
        '{"objects": [[40, 60, 320, 480]]}',
        '{"label": "jar", "x1": 40, "y1": 60, "x2": 320}',
        '{"bbox_2d": "[40, 60, 320, 480]", "label": "jar"}',
        '{"bbox_2d": null, "label": "jar"}',
        '{"bbox_3d": [1, 2, 3, 4, 5, 6, 7, 8, 9], "label": "jar"}',
    ],
)
def test_numbers_under_other_names_are_no_box(element: str) -> None:
    answer = parse(f"[{element}, {LID}]", SIZE, QWEN3)
    assert found(answer.text) == [LID_FOUND]
    assert answer.problem and "{" in answer.problem


def test_a_box_in_thousandths_is_refused_where_the_model_counts_pixels() -> None:
    answer = parse('[{"box_2d": [60, 40, 480, 320], "label": "jar"}]', SIZE, QWEN2_5)
    assert not answer.detections
    assert answer.problem and answer.problem.startswith("box_2d counts 0-1000, which is not this model's frame")


@pytest.mark.parametrize(
    "broken",
    [
        '{"bbox_2d": [500, 20, 700 400], "label": "x"}',
        '{"bbox_2d" [500, 20, 700, 400], "label": "x"}',
        '{"bbox_2d": [500, 20, 700, 400] "label": "x"}',
        '{"bbox_2d": [500, 20, 700, 400, "label": "x"}',
        '{"bbox_2d": [500, 20, 700, 400], "label": x"}',
        '{"bbox_2d": [500, 20, 700, 400], "label": "x" and more}',
        '{"bbox_2d": [500, 20, 700, 400], "label": x}',
        '{"bbox_2d": [500, , 700, 400], "label": "x"}',
        '{"bbox_2d": [500, 20, 7OO, 400], "label": "x"}',
        '{"bbox_2d": [500, 20, 700, 4' + "0" * 400 + '], "label": "x"}',
        '{"bbox_2d": [500, 20, 1e999, 400], "label": "x"}',
        '{"bbox_2d": [500, 20], "label": "x"}',
        '{"bbox_2d": [700, 20, 500, 400], "label": "x"}',
        '{"label": "x"}',
        '"x"',
        "3",
    ],
)
def test_a_broken_element_loses_itself_and_not_its_list(broken: str) -> None:
    for text in (f"[{JAR}, {broken}, {LID}]", f'{{"objects": [{broken}, {JAR}, {LID}]}}'):
        answer = parse(text, SIZE, QWEN3)
        assert found(text) == [JAR_FOUND, LID_FOUND], text
        assert answer.problem and answer.complete


def test_a_missing_comma_between_elements_is_reported() -> None:
    answer = parse(f"[{JAR} {LID}]", SIZE, QWEN3)
    assert found(answer.text) == [JAR_FOUND, LID_FOUND]
    assert answer.problem and answer.problem.startswith("not readable: [{")


@pytest.mark.parametrize(
    ("written", "label"),
    [
        ('"two\nlines\tand a tab"', "two\nlines\tand a tab"),
        ("'the cook's jar'", "the cook's jar"),
        ('"the "big" jar"', 'the "big" jar'),
        ('"a 15" jar"', 'a 15" jar'),
        (r'"gr\u00f6\u00dfer \ud83e\udd89"', "größer 🦉"),
        (r"'it\'s \"new\"'", 'it\'s "new"'),
        (r'"half \ud83e"', r"half \ud83e"),  # which no UTF-8 can hold: it stays as it was written
        (r'"C:\data"', r"C:\data"),
        ('"}], [{"', "}], [{"),
    ],
)
def test_labels_as_models_write_them(written: str, label: str) -> None:
    text = f'[{{"bbox_2d": [40, 60, 320, 480], "label": {written}}}, {LID}]'
    answer = parse(text, SIZE, QWEN3)
    assert found(text) == [((40, 60, 320, 480), label), LID_FOUND]
    assert answer.problem is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<|box_start|>(10,20),(300,4" + "0" * 400 + ")<|box_end|>", "not four numbers"),
        ("<|quad_start|>(10,20),(300,20),(300,400),(10,400)<|quad_end|>", "not the two corners of a box"),
        ("<|box_start|>(10,20),(300,400),(5,6)<|box_end|>", "not the two corners of a box"),
    ],
)
def test_points_that_are_no_two_corners(text: str, problem: str) -> None:
    answer = parse(text, SIZE, QWEN2)
    assert not answer.detections and answer.complete
    assert answer.problem and problem in answer.problem


def check(answer: ParsedAnswer) -> None:
    """What holds for every answer: boxes are boxes, and all that is said of it can be written down."""
    assert (answer.status == "unparsed") == (not answer.detections and not answer.refused)
    assert answer.problem or answer.status != "unparsed"
    assert not (answer.problem and answer.refused)
    (answer.problem or "").encode()
    for one in answer.detections:
        one.label.encode()
        assert one.box[0] < one.box[2] and one.box[1] < one.box[3]
        json.dumps(one.box, allow_nan=False)


PIECES = [
    *"[]{}(),:\"'\\\n -.",
    *('"bbox_2d"', '"box_2d"', "'label'", '"objects"', "x1", "null", "NaN", "None", "7", "-3", "1e400", "9" * 400),
    *("[1, 2, 3, 4]", "(1,2),(3,4)", "(1,2)", JAR, LID, "[[5, 6, 70, 80]]", "\ud83e", "\\ud83e", "ü"),
    *("<think>", "</think>", "<ref>", "</ref>", "<box>", "</box>", "<|box_start|>", "<|box_end|>", "```json", "```"),
]
formats = st.sampled_from([family.box_format for family in FAMILIES.values()])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), formats)
def test_any_sequence_of_pieces_can_be_parsed(text: str, box_format: Any) -> None:
    check(parse(text, SIZE, box_format))


@settings(deadline=None)
@given(st.text(st.characters(), max_size=60), formats)
def test_any_text_can_be_parsed_even_halves_of_characters(text: str, box_format: Any) -> None:
    check(parse(text, SIZE, box_format))


@settings(deadline=None)
@given(st.data())
def test_one_character_more_or_less_costs_one_element(data: st.DataObject) -> None:
    """A letter, digit or comma that is lost, doubled or wrong in one of five elements leaves the other four."""
    boxes = [[100 * place, 10, 100 * place + 90, 95] for place in range(5)]
    elements = [json.dumps({"bbox_2d": box, "label": f"cup {place}"}) for place, box in enumerate(boxes)]
    spoilt = data.draw(st.integers(0, 4))
    element = elements[spoilt]
    places = [place for place, letter in enumerate(element) if letter not in '{}[]"']
    at = data.draw(st.sampled_from(places))
    instead = data.draw(st.sampled_from(["", "x", ",", ":", " ", element[at] * 2]))
    elements[spoilt] = element[:at] + instead + element[at + 1 :]
    read = {one.box for one in parse(f"[{', '.join(elements)}]", SIZE, QWEN3).detections}
    assert {tuple(map(float, box)) for place, box in enumerate(boxes) if place != spoilt} <= read


@pytest.mark.parametrize("box_format", [QWEN3, QWEN2, INTERNVL])
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "[",
            "{",
            "(",
            "]}",
            '{"a":',
            '{"bbox_2d":',
            "[[1,2,3,4],",
            "[ ",
            "[,",
            "9",
            "[9.",
            "(1 ",
            "(1,2) ",
            "(1,2),",
        ),
        *('["', "['a", '["a" x ', '["\\', "<", "<ref>", "<think>", "</think>", "<box>[", "```", "[1,2,3,4]\n"),
        *('{"bbox_2d" [1,2,3,4]},', f"{JAR} ", "\ud83e", "(1,2)\n\n"),
    ],
)
def test_long_answers_take_time_in_proportion(piece: str, box_format: Any) -> None:
    """A step that looks at the rest of the text again for each piece would keep this busy for minutes."""
    check(parse(piece * (40_000 // len(piece)), SIZE, box_format))
    check(parse(f"[{piece}" + " " * 40_000 + "x", SIZE, box_format))
