"""What a data set gets wrong is told in a line with its place and nothing is written; `report` goes on and lists it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.converting import GOLDEN, convert, lines, pictures, write_json
from edgetune_data.read import Reading, load
from edgetune_data.settings import ReadSettings
from edgetune_runtime.errors import InputError


def coco(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((GOLDEN / "coco" / "input.json").read_text())
    return value | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return coco(annotations=[{"id": 1, "image_id": 139, "category_id": 1, "bbox": [1, 2, 3, 4]} | changes])


def task(value: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    size = {"original_width": 160, "original_height": 120}
    result = {"id": "a", "type": "rectanglelabels", "from_name": "label", **size, "value": value} | changes
    return [{"id": 4, "data": {"image": "desk.png"}, "annotations": [{"result": [result]}]}]


BOX = {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cup"]}
CHOICE = {"type": "choices", "from_name": "light", "original_width": None}
OTHER = {"id": 139, "file_name": "desk.png", "width": 320, "height": 240}

CASES: dict[str, tuple[Any, str]] = {
    "coco crowd": (annotation(iscrowd=1), "#139/cup: annotation 1 is a crowd: one region for several objects"),
    "coco size": (
        coco(images=[OTHER]) | {"annotations": annotation()["annotations"]},
        "#139/cup: the data is for a 320x240",
    ),
    "coco no width": (annotation(bbox=[1, 2, 0, 4]), "#139/cup: annotation 1: bbox [1, 2, 0, 4] has no area"),
    "coco no box": (annotation(bbox=None), "#139/cup: annotation 1: a bbox is [x, y, width, height], got None"),
    "coco outside": (
        annotation(bbox=[100, 2, 80, 4]),
        "#139/cup: bbox [100.0, 2.0, 180.0, 6.0] leaves the 160x120 image",
    ),
    "coco picture": (annotation(image_id=7), "#7/cup: annotation 1: there is no picture 7"),
    "coco category": (annotation(category_id=8), "#139/8: annotation 1: there is no category 8"),
    "coco twice": (coco(categories=[{"id": 1, "name": "cup"}] * 2), ": 'categories' has id 1 twice"),
    "coco same name": (
        annotation()
        | {"categories": [{"id": 1, "name": "cup"}, {"id": 7, "name": "cup"}]}
        | {"annotations": [{"id": n, "image_id": 139, "category_id": n, "bbox": [1, 2, 3, 4]} for n in (1, 7)]},
        ": categories 1 and 7 have the same name, 'cup'",
    ),
    "coco no name": (
        annotation() | {"categories": [{"id": 1, "name": 5}]},
        "#139/5: the name of category 1 must be a text, got 5",
    ),
    "coco size as text": (
        annotation() | {"images": [OTHER | {"width": "160", "height": "120"}]},
        "#139/cup: width and height of the picture must be numbers, got '160' and '120'",
    ),
    "coco crowd what": (annotation(iscrowd="no"), "#139/cup: annotation 1: 'iscrowd' must be 0 or 1, got 'no'"),
    "coco nothing": (coco(annotations=[]), ": no records in this file"),
    "coco broken": (coco(annotations=[3]), ": 'annotations' must be a list of objects"),
    "ls rotated": (task(BOX | {"rotation": 12.5}), "#4/cup: the rectangle is rotated by 12.5 degrees"),
    "ls turned": (task(BOX, image_rotation=90), "#4/cup: the picture was rotated by 90 degrees"),
    "ls turned by text": (task(BOX | {"rotation": "9"}), "#4/cup: a rotation is a number of degrees, got '9'"),
    "ls size": (task(BOX, original_width=161), "#4/cup: the data is for a 161x120 picture, but "),
    "ls outside": (task(BOX | {"x": 60}), "#4/cup: bbox [96.0, 12.0, 176.0, 72.0] leaves the 160x120 image"),
    "ls polygon": (task({}, type="polygonlabels"), "#4: annotations of type 'polygonlabels' are not supported"),
    "ls nameless": (task(BOX | {"rectanglelabels": []}), "#4: a rectangle has no label"),
    "ls two names": (
        task(BOX | {"rectanglelabels": ["cup", "mug"]}),
        "#4: a rectangle has several names: ['cup', 'mug']",
    ),
    "ls question": (
        task({"choices": ["day"]}, **CHOICE),
        "#4/light: the export does not say which question 'light' answers",
    ),
    "ls server": (
        [task(BOX)[0] | {"data": {"image": "/data/upload/1/desk.png"}}],
        "#4/cup: the picture is at /data/upload/1/desk.png, on the Label Studio server",
    ),
    "ls annotators": (
        [task(BOX)[0] | {"annotations": task(BOX)[0]["annotations"] * 2}],
        "#4: 2 annotations have boxes",
    ),
    "vqa no answers": (
        {"data": [{"image": "desk.png", "question": "What?", "answers": []}]},
        "#0: 'answers' must be a list",
    ),
    "vqa no picture": ({"data": [{"question": "What?", "answer": "x"}]}, "#0: missing key 'image'"),
    "vqa empty": (
        {"data": [{"image": "desk.png", "question": "What?", "answers": [""]}]},
        "#0: 'answer' must be a text or",
    ),
    "llava": ([{"image": "desk.png", "conversations": []}], "#0: the messages must be a list of objects, none empty"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_record_stops_with_its_place(tmp_path: Path, name: str) -> None:
    value, message = CASES[name]
    pictures(tmp_path)
    path = write_json(tmp_path / "input.json", value)
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}{message}")
    assert not (tmp_path / "out").exists()


CELLS = {
    "desk.png,cup,1,2,x,4,,": "#0: a bbox is four numbers, got ['1', '2', 'x', '4']",
    "desk.png,cup,1,2,,4,,": "#0: a bbox is four numbers, got ['1', '2', None, '4']",
    "desk.png,cup,,,,,,": "#0: no box: the columns 'bbox' and 'x1' to 'y2' are missing or empty",
    'desk.png,cup,,,,,"[1, 2",': "#0: bbox '[1, 2' is no list",
    'desk.png,cup,,,,,"[1, 2, 3]",': "#0: a bbox is four numbers, got [1, 2, 3]",
    "desk.png,,1,2,3,4,,": "#0: neither a phrase nor a question: the columns 'text' and "
    "'question' are missing or empty",
    ",cup,1,2,3,4,,": "#0: no picture: the column 'image' is missing or empty",
    "desk.png,,,,,,,What?": "#0: no answer: the column 'answer' is missing or empty",
    "gone.png,cup,1,2,3,4,,": "#0: gone.png: no such image file",
}


@pytest.mark.parametrize("row", CELLS)
def test_a_wrong_row_stops_with_its_number(tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path)
    Path("input.csv").write_text(f"image,text,x1,y1,x2,y2,bbox,question\n{row}\n")
    result = convert(Path("input.csv"), Path("out"))
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, f"error: input.csv{CELLS[row]}")


def test_report_goes_on_and_shows_how_many_were_refused(tmp_path: Path) -> None:
    pictures(tmp_path)
    value = coco()
    value["annotations"][0]["iscrowd"] = 1
    path = write_json(tmp_path / "input.json", value)
    stopped = convert(path, tmp_path / "out")
    assert (stopped.exit_code, "--on-error report" in stopped.stderr) == (2, True)
    result = convert(path, tmp_path / "out", "--on-error", "report")
    assert result.exit_code == 0
    assert f"{path}: records rejected: 1, the first: {path}#285/book: annotation 11 is a crowd" in result.stderr
    assert result.stdout.endswith("2 records (2 ground) of 1 pictures from coco, 1 rejected\n")
    [rejected] = lines(tmp_path / "out" / "rejected.jsonl")
    assert rejected["record"] == [value["annotations"][0]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["stage"], manifest["result"]["rejected"], manifest["result"]["records"]) == ("data-convert", 1, 2)
    with pytest.raises(InputError, match="annotation 11 is a crowd"):
        load(path)


def test_a_set_without_one_good_record_is_an_error(tmp_path: Path) -> None:
    path = write_json(tmp_path / "input.json", coco())
    result = convert(path, tmp_path / "out", "--on-error", "report")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: none of 3 records can be used; {path}#139/cup: ")


def test_pictures_without_annotations_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path)
    result = convert(write_json(tmp_path / "input.json", annotation()), tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert "pictures without annotations, of which no record is made: 1" in result.stderr
    assert result.stdout == f"{tmp_path / 'out'}: would write 1 records from coco\n"
    assert not (tmp_path / "out").exists()


def test_an_answer_gets_its_question_and_uploads_their_folder(tmp_path: Path) -> None:
    (tmp_path / "media" / "1").mkdir(parents=True)
    pictures(tmp_path / "media" / "1")
    tasks = task({"choices": ["day", "dusk"]}, **CHOICE)
    tasks[0]["data"]["image"] = "/data/upload/1/desk.png"
    path = write_json(tmp_path / "input.json", tasks)
    options = ReadSettings(image_root=tmp_path / "media", questions={"light": "What light is it?"})
    [item] = Reading(path, options=options)
    assert item.value == {
        "image": str(tmp_path / "media" / "1" / "desk.png"),
        "question": "What light is it?",
        "answer": ["day, dusk"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "val"), "error: --split means nothing for the format coco\n"),
        (("--box-format", "xywh"), "error: --box-format means nothing for the format coco\n"),
        (("--column", "text=caption"), "error: --column means nothing for the format coco\n"),
        (("--format", "coc"), "unknown format 'coc'\nhint: did you mean 'coco'?"),
        (("--column", "text"), "'text' must look like OURS=THEIRS"),
        (("--format", "refcoco"), "refs need their instances.json"),
        (("--format", "labelstudio"), 'hint: export as "JSON", not "JSON-MIN" or others'),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = convert(write_json(tmp_path / "input.json", coco()), tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,text\ndesk.png,cup\n")
    result = convert(tmp_path / "a.csv", tmp_path / "out", "--column", "text=caption")
    assert (result.exit_code, "there is no column 'caption'" in result.stderr) == (2, True)
    (tmp_path / "a.csv").write_text("image,image\na,b\n")
    assert "must name each column once" in convert(tmp_path / "a.csv", tmp_path / "out").stderr
