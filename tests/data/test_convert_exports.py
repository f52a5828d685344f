"""What labelling tools export beside the plain case: several pictures in a task, spare categories, masks, sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data.converting import convert, lines, pictures, write_json

# The rectangle of `region`, on a picture of 160x120 and on one of 100x80 pixels.
ON_DESK, ON_SHELF = [16, 30, 96, 90], [10, 20, 60, 60]


def region(tag: str, name: str = "cup", *, size: tuple[int, int] = (160, 120), **changes: Any) -> dict[str, Any]:
    value = {"x": 10, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": [name]}
    drawn = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return {
        "id": f"{tag}{name}{changes}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": tag,
        **drawn,
        "value": value,
    } | changes


def export(folder: Path, data: dict[str, Any], *results: dict[str, Any]) -> Path:
    pictures(folder)
    return write_json(folder / "export.json", [{"id": 7, "data": data, "annotations": [{"result": list(results)}]}])


def boxes(folder: Path) -> dict[tuple[str, str], Any]:
    return {(Path(line["image"]).name, line["text"]): line["bbox"] for line in lines(folder / "out" / "data.jsonl")}


TWO = {"image": "desk.png", "image2": "shelf.png", "question": "Is it lit?"}
SHELF = (100, 80)


def test_regions_of_two_image_tags_go_each_to_its_picture(tmp_path: Path) -> None:
    both = region("left"), region("right", size=SHELF), region("right", "book", size=SHELF)
    path = export(tmp_path, TWO, *both)
    refused = convert(path, tmp_path / "out")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines() == [
        f"error: {path}#7/left/cup: the export does not say which of 'image', 'image2' the image tag 'left' shows",
        "hint: --column left=NAME says it, once for each tag",
    ]
    named = convert(path, tmp_path / "out", "--column", "left=image", "--column", "right=image2")
    assert named.exit_code == 0, named.stderr
    expected = {("desk.png", "cup"): [ON_DESK], ("shelf.png", "cup"): [ON_SHELF], ("shelf.png", "book"): [ON_SHELF]}
    assert boxes(tmp_path) == expected
    sources = [line["meta"]["source"] for line in lines(tmp_path / "out" / "data.jsonl")]
    assert sources == ["export.json#7/left/cup", "export.json#7/right/cup", "export.json#7/right/book"]


def test_a_tag_that_is_called_like_an_entry_of_the_task_shows_it(tmp_path: Path) -> None:
    path = export(tmp_path, TWO, region("image2", size=SHELF))
    assert convert(path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path) == {("shelf.png", "cup"): [ON_SHELF]}


def test_an_answer_is_about_the_picture_of_its_tag(tmp_path: Path) -> None:
    said = {"id": "q", "from_name": "lit", "to_name": "right", "type": "choices", "value": {"choices": ["yes"]}}
    path = export(tmp_path, TWO, said)
    assert "the image tag 'right' shows" in convert(path, tmp_path / "out").stderr
    assert convert(path, tmp_path / "out", "--column", "right=image2").exit_code == 0
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert (line["image"], line["question"], line["answer"]) == ("../shelf.png", "Is it lit?", ["yes"])


@pytest.mark.parametrize("beside", [{}, {"image": "desk.png"}])
def test_regions_of_pages_go_each_to_its_page(tmp_path: Path, beside: dict[str, str]) -> None:
    pages = {**beside, "pages": ["desk.png", "shelf.png"]}
    path = export(tmp_path, pages, region("img", item_index=0), region("img", size=SHELF, item_index=1))
    assert convert(path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path) == {("desk.png", "cup"): [ON_DESK], ("shelf.png", "cup"): [ON_SHELF]}


@pytest.mark.parametrize(
    ("data", "item_index", "message"),
    [
        ({"pages": ["desk.png", "shelf.png"]}, None, "'pages' has 2 pages, and the annotation does not say which"),
        ({"pages": ["desk.png", "shelf.png"]}, 2, "the annotation is about page 2 of 'pages', which has 2 (from 0)"),
        ({"image": "desk.png"}, 0, "no list of pages in the task's data: 'image'"),
    ],
)
def test_a_page_that_is_not_there_is_refused(
    tmp_path: Path, data: dict[str, Any], item_index: int | None, message: str
) -> None:
    path = export(tmp_path, data, region("img", item_index=item_index))
    result = convert(path, tmp_path / "out")
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_the_address_of_an_upload_is_unquoted(tmp_path: Path) -> None:
    media = tmp_path / "media" / "1"
    media.mkdir(parents=True)
    pictures(media)
    (media / "desk.png").rename(media / "8f3a-été 1.png")
    data = {"image": "/data/upload/1/8f3a-%C3%A9t%C3%A9%201.png"}
    result = convert(export(tmp_path, data, region("image")), tmp_path / "out", "--image-root", str(tmp_path / "media"))
    assert result.exit_code == 0, result.stderr
    assert boxes(tmp_path) == {("8f3a-été 1.png", "cup"): [ON_DESK]}


@pytest.mark.parametrize(("degrees", "taken"), [(360, True), (1e-12, True), (-720.0, True), (0.5, False), (180, False)])
def test_a_whole_turn_is_no_rotation(tmp_path: Path, degrees: float, taken: bool) -> None:
    # What a turn by these degrees does to a corner of the largest pictures, in pixels.
    moved = abs(math.sin(math.radians(degrees / 2))) * 2 * 4096
    assert (moved < 0.1) == taken
    turned = region("image")
    turned["value"]["rotation"] = degrees
    assert (convert(export(tmp_path, {"image": "desk.png"}, turned), tmp_path / "out").exit_code == 0) == taken


def coco(folder: Path, **changes: Any) -> Path:
    pictures(folder)
    image = {"id": 0, "file_name": "desk.png", "width": 160, "height": 120}
    box = {"id": 3, "image_id": 0, "category_id": 1, "bbox": [16, 30, 80, 60]}
    value = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cup"}]}
    return write_json(folder / "instances.json", value | changes)


def test_a_category_without_annotations_may_have_the_name_of_another(tmp_path: Path) -> None:
    root = [{"id": 0, "name": "cup", "supercategory": "none"}, {"id": 1, "name": "cup", "supercategory": "cup"}]
    assert convert(coco(tmp_path, categories=root), tmp_path / "out").exit_code == 0
    assert boxes(tmp_path) == {("desk.png", "cup"): [ON_DESK]}


MASKS = [
    {"id": 3, "image_id": 0, "category_id": 1, "bbox": [16, 30, 80, 60], "iscrowd": "0"},
    {"id": 4, "image_id": 0, "category_id": 1, "bbox": [10, 20, 50, 40], "iscrowd": 1},
]


@pytest.mark.parametrize(("crowd", "expected"), [("keep", [ON_DESK, ON_SHELF]), ("skip", [ON_DESK])])
def test_crowd_regions_are_taken_or_left_out_as_told(tmp_path: Path, crowd: str, expected: Any) -> None:
    path = coco(tmp_path, annotations=MASKS)
    refused = convert(path, tmp_path / "out")
    assert (refused.exit_code, "annotation 4 is a crowd" in refused.stderr) == (2, True)
    result = convert(path, tmp_path / "out", "--crowd", crowd)
    assert result.exit_code == 0, result.stderr
    assert boxes(tmp_path) == {("desk.png", "cup"): expected}
    assert ("crowd regions left out, as --crowd skip says: 1" in result.stderr) == (crowd == "skip")


def test_leaving_out_every_annotation_is_an_error(tmp_path: Path) -> None:
    result = convert(coco(tmp_path, annotations=MASKS[1:]), tmp_path / "out", "--crowd", "skip")
    assert (result.exit_code, "all 1 annotations are crowds" in result.stderr) == (2, True)


def test_two_entries_of_one_picture_are_remarked(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": "desk.png"} for number in (0, 1)]
    annotations = [MASKS[0], MASKS[1] | {"image_id": 1, "iscrowd": 0}]
    result = convert(coco(tmp_path, images=images, annotations=annotations), tmp_path / "out")
    assert result.exit_code == 0
    assert "records with the picture and the phrase of an earlier one: 1\n" in result.stderr


def table(folder: Path, *rows: str, name: str = "table.csv") -> Path:
    pictures(folder)
    (folder / name).write_text("\n".join(rows) + "\n")
    return folder / name


TENSORFLOW = "filename,width,height,class,xmin,ymin,xmax,ymax"


def test_columns_of_another_tool_are_named_by_the_hint_and_their_sizes_compared(tmp_path: Path) -> None:
    rows = ["desk.png,160,120,cup,16,30,96,90", "desk.png,160,120,cup,10,20,60,60"]
    path = table(tmp_path, TENSORFLOW, *rows)
    refused = convert(path, tmp_path / "out")
    assert refused.exit_code == 2
    hint = refused.stderr.splitlines()[1].removeprefix("hint: ")
    result = convert(path, tmp_path / "out", *hint.split())
    assert result.exit_code == 0, result.stderr
    assert [line["bbox"] for line in lines(tmp_path / "out" / "data.jsonl")] == [[ON_DESK], [ON_SHELF]]
    assert "the phrase of an earlier one, which --group-rows joins: 1" in result.stderr
    joined = convert(path, tmp_path / "joined", *hint.split(), "--group-rows")
    assert (joined.exit_code, "an earlier one" in joined.stderr) == (0, False)
    other = convert(table(tmp_path, TENSORFLOW, "desk.png,320,240,cup,32,60,152,112"), tmp_path / "x", *hint.split())
    assert other.exit_code == 2
    assert "#0: the data is for a 320x240 picture, but " in other.stderr


def test_a_spreadsheet_with_semicolons_is_read(tmp_path: Path) -> None:
    path = table(tmp_path, "image;text;x1;y1;x2;y2", "desk.png;the cup, red;16;30;96;90")
    assert convert(path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path) == {("desk.png", "the cup, red"): [ON_DESK]}


@pytest.mark.parametrize(
    ("rows", "message", "hint"),
    [
        (("image,text,bbox", 'desk.png,cup,"0.1,0.2,0.5,0.9"'), "lies within one pixel", "--box-format xyxy-norm1"),
        (("image;text;x1;y1;x2;y2", "desk.png;cup;1,5;2;3;4"), "a bbox is four numbers", "decimals with a point"),
        (("image,text,x1,y1,x2,y2", "desk.png,cup,1_0,2,30,40"), "a bbox is four numbers, got ['1_0', '2'", ""),
        (("image, text, bbox", "desk.png,cup,[]"), "the column ' text' has spaces around its name", "without spaces"),
        (("image,text,bbox", "desk.png,cup,1 2 3 4"), "bbox '1 2 3 4' is no list", "write it as JSON"),
        (("image,text,width,height,bbox", 'desk.png,cup,?,120,"1, 2, 3, 4"'), "must be numbers, got '?'", ""),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(
    tmp_path: Path, rows: tuple[str, ...], message: str, hint: str
) -> None:
    result = convert(table(tmp_path, *rows), tmp_path / "out")
    assert (result.exit_code, message in result.stderr, hint in result.stderr) == (2, True, True), result.stderr


def test_an_explicit_frame_is_believed(tmp_path: Path) -> None:
    path = table(tmp_path, "image,text,bbox", 'desk.png,cup,"0, 0, 1, 1"')
    assert convert(path, tmp_path / "out").exit_code == 2
    assert convert(path, tmp_path / "out", "--box-format", "xyxy").exit_code == 0
    assert boxes(tmp_path) == {("desk.png", "cup"): [[0, 0, 1, 1]]}
    assert convert(path, tmp_path / "whole", "--box-format", "xyxy-norm1").exit_code == 0
    whole = json.loads((tmp_path / "whole" / "data.jsonl").read_text())
    assert whole["bbox"] == [[0, 0, 160, 120]]


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("~/desk.png", "hint: '~' is not expanded in data files: write the whole path"),
        ("C:\\data\\desk.png", "hint: the path has backslashes: write it with /"),
        ("DESK.PNG", "hint: there is 'desk.png', whose name differs in capital or small letters"),
        ("cafe\u0301.png", "hint: there is 'caf\u00e9.png', whose name differs in Unicode form"),
    ],
)
def test_a_picture_that_is_only_named_otherwise_is_told(tmp_path: Path, written: str, hint: str) -> None:
    pictures(tmp_path)
    (tmp_path / "shelf.png").rename(tmp_path / "caf\u00e9.png")
    path = write_json(tmp_path / "list.json", [{"image": written, "question": "What?", "answer": "this"}])
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].endswith(": no such image file")
    assert result.stderr.splitlines()[1].startswith(hint)


def absences(folder: Path) -> list[tuple[str, str]]:
    written = lines(folder / "out" / "data.jsonl")
    return [(Path(line["image"]).name, line["text"]) for line in written if line["bbox"] == []]


def test_what_was_looked_for_in_a_coco_file_and_has_no_annotation_is_absent(tmp_path: Path) -> None:
    images = [{"id": 0, "file_name": "desk.png"}, {"id": 1, "file_name": "shelf.png"}]
    assert convert(coco(tmp_path, images=images), tmp_path / "out", "--absent", "cup", "--absent", "jar").exit_code == 0
    assert boxes(tmp_path)["desk.png", "cup"] == [ON_DESK]
    assert sorted(absences(tmp_path)) == [("desk.png", "jar"), ("shelf.png", "cup"), ("shelf.png", "jar")]


def test_what_people_decided_about_predictions_comes_back(tmp_path: Path) -> None:
    """A prediction that was accepted, one that was renamed, one that was deleted, and a task that nobody submitted."""
    pictures(tmp_path)
    proposed = region("image")
    named = region("image", size=SHELF, value=proposed["value"] | {"rectanglelabels": ["jar"]}, origin="prediction")
    decided: list[list[dict[str, Any]] | None] = [[proposed | {"origin": "prediction"}], [named], [], None]
    tasks = [
        {
            "id": number,
            "data": {"image": image, "uncertainty": 0.5, "group": number},
            "predictions": [{"model_version": "tiny", "score": 0.5, "result": [proposed]}],
            "annotations": [] if result is None else [{"result": result, "was_cancelled": False}],
        }
        for number, (image, result) in enumerate(zip(["desk.png", "shelf.png"] * 2, decided, strict=True))
    ]
    path = write_json(tmp_path / "export.json", tasks)
    result = convert(path, tmp_path / "out", "--absent", "cup")
    assert result.exit_code == 0, result.stderr
    assert "tasks without a submitted annotation, of which no record is made: 1" in result.stderr
    written = [(Path(one["image"]).name, one["text"], one["bbox"]) for one in lines(tmp_path / "out" / "data.jsonl")]
    assert written == [
        ("desk.png", "cup", [ON_DESK]),
        ("shelf.png", "jar", [ON_SHELF]),
        ("shelf.png", "cup", []),
        ("desk.png", "cup", []),
    ]
