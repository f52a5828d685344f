"""CVAT for images: what has a box of ours is read, and what has none is refused with its line."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.converting import GOLDEN, convert, lines, pictures
from edgetune_data.formats import sniff
from edgetune_data.read import Reading
from edgetune_runtime.errors import InputError

BOX = '<box label="cup" occluded="0" xtl="16" ytl="30" xbr="96" ybr="90" z_order="0"{}></box>'


def cvat(folder: Path, *shapes: str, image: str = 'id="0" name="desk.png" width="160" height="120"') -> Path:
    pictures(folder)
    path = folder / "annotations.xml"
    inside = "\n".join(shapes)
    path.write_text(f"<annotations>\n<version>1.1</version>\n<image {image}>\n{inside}\n</image>\n</annotations>\n")
    return path


def boxes(folder: Path) -> dict[str, Any]:
    return {line["text"]: line["bbox"] for line in lines(folder / "out" / "data.jsonl")}


def test_what_is_left_out_or_kept_on_purpose_is_told(tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_bytes((GOLDEN / "cvat" / "annotations.xml").read_bytes())
    pictures(tmp_path)
    result = convert(tmp_path, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for remark in (
        "boxes marked as occluded, which are kept: 1",
        "outlines, which are read as the boxes around them: 1",
        "masks, which are read as the boxes around them: 1",
        "tags of whole pictures, which are left out: 1",
        "pictures without shapes, of which no record is made: 1",
    ):
        assert f"{tmp_path}: {remark}\n" in result.stderr


def test_corners_are_those_that_the_standard_library_reads(tmp_path: Path) -> None:
    path = cvat(tmp_path, BOX.format(""))
    [box] = ElementTree.parse(path).getroot().iter("box")
    assert convert(path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path) == {"cup": [[float(box.get(corner, "")) for corner in ("xtl", "ytl", "xbr", "ybr")]]}


def test_it_is_told_from_pascal_voc(tmp_path: Path) -> None:
    path = cvat(tmp_path, BOX.format(""))
    assert [sniff(path).name, sniff(tmp_path).name] == ["cvat", "cvat"]
    path.write_text("<annotation><filename>desk.png</filename></annotation>")
    assert [sniff(path).name, sniff(tmp_path).name] == ["voc", "voc"]


def test_pictures_of_an_export_lie_in_its_folder_images(tmp_path: Path) -> None:
    path = cvat(tmp_path, BOX.format(""), image='id="0" name="a/desk.png" width="160" height="120"')
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "desk.png").rename(tmp_path / "images" / "a" / "desk.png")
    assert convert(path, tmp_path / "out").exit_code == 0
    assert lines(tmp_path / "out" / "data.jsonl")[0]["image"] == "../images/a/desk.png"
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert f"{tmp_path / 'a' / 'desk.png'}: no such" in convert(path, tmp_path / "none").stderr
    assert convert(path, tmp_path / "there", "--image-root", str(tmp_path / "elsewhere")).exit_code == 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (BOX.format(' rotation="30.0"'), "<box> of 'cup' in line 4: rotated by 30.0 degrees"),
        ('<ellipse label="cup" cx="1" cy="2" rx="3" ry="4"/>', "<ellipse> of 'cup' in line 4: such shapes have no box"),
        ('<points label="cup" points="1,2"/>', "<points> of 'cup' in line 4: such shapes have no box"),
        ('<polygon label="cup" points="1,2;3"/>', "<polygon> of 'cup' in line 4: a point is x,y, got '3'"),
        (BOX.format("").replace('xtl="16"', 'xtl="left"'), "'xtl' of <box> must be a number, got 'left'"),
        (BOX.format("").replace('xtl="16"', ""), "<box> has no attribute 'xtl'"),
        (BOX.format("").replace('"cup"', '""'), "<box> has no label"),
        (BOX.format("").replace('xbr="96"', 'xbr="161"'), "bbox [16.0, 30.0, 161.0, 90.0] leaves the 160x120 image"),
    ],
)
def test_a_shape_without_a_box_of_ours_is_told_at_its_line(tmp_path: Path, shape: str, message: str) -> None:
    path = cvat(tmp_path, shape)
    result = convert(path, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}:4: {message}"), result.stderr
    whole = cvat(tmp_path, shape.replace("cup", "jar"), BOX.format(""))
    reported = convert(whole, tmp_path / "out", "--on-error", "report")
    assert (reported.exit_code, list(boxes(tmp_path))) == (0, ["cup"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><track id='0'/></annotations>", ":1: tracks of a video are not read"),
        ("<annotations>\n<image", ":2: not valid XML"),
        ("<!DOCTYPE a []>\n<annotations></annotations>", ":1: a document type is not read"),
        ("<annotations></annotations>", ": no records in this file"),
    ],
)
def test_a_document_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "annotations.xml"
    path.write_text(text)
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}{message}"), result.stderr


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    path = cvat(tmp_path, BOX.format(""), image='id="0" name="desk.png" width="320" height="240"')
    assert "the data is for a 320x240 picture" in convert(path, tmp_path / "out").stderr


def test_phrases_that_were_looked_for_and_not_found_are_absent_objects(tmp_path: Path) -> None:
    path = cvat(tmp_path, BOX.format(""))
    path.write_text(path.read_text().replace("</annotations>", '<image id="1" name="shelf.png"/></annotations>'))
    result = convert(path, tmp_path / "out", "--absent", "cup", "--absent", "jar")
    assert result.exit_code == 0, result.stderr
    found = [(Path(one["image"]).name, one["text"], one["bbox"]) for one in lines(tmp_path / "out" / "data.jsonl")]
    assert found == [
        ("desk.png", "cup", [[16, 30, 96, 90]]),
        ("desk.png", "jar", []),
        ("shelf.png", "cup", []),
        ("shelf.png", "jar", []),
    ]
    other = convert(GOLDEN / "voc", tmp_path / "voc", "--absent", "cup")
    assert "--absent means nothing for the format voc" in other.stderr


@given(st.integers(0, 3000), st.integers(0, 40), st.text('<>/"=;,.-09axé', max_size=6))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_told_and_nothing_else(tmp_path: Path, place: int, length: int, junk: str) -> None:
    text = (GOLDEN / "cvat" / "annotations.xml").read_text()
    path = tmp_path / "annotations.xml"
    path.write_text(text[:place] + junk + text[place + length :])
    if not (tmp_path / "desk.png").exists():
        pictures(tmp_path)
    try:
        items = list(Reading(path, "cvat"))
    except InputError as error:
        assert str(error).startswith(str(path))
        return
    for item in items:
        try:
            item.record()
        except InputError as error:
            assert str(error).startswith(f"{path}:")
