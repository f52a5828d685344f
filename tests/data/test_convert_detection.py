"""YOLO's and Pascal VOC's layouts, splits and mistakes; expected boxes are worked out by hand from the descriptions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from data.converting import convert, lines, pictures
from edgetune_data.formats import sniff

NAMES = "names: [cup, book]\n"


def yolo(folder: Path, *labels: str, data: str = f"train: images/train\n{NAMES}", name: str = "labels/train") -> Path:
    """A data set with desk.png (160x120) and its labels in the usual folders."""
    (folder / "images" / "train").mkdir(parents=True)
    (folder / name).mkdir(parents=True, exist_ok=True)
    pictures(folder / "images" / "train")
    (folder / name / "desk.txt").write_text("".join(f"{label}\n" for label in labels))
    (folder / "data.yaml").write_text(data)
    return folder / "data.yaml"


def boxes(folder: Path) -> list[tuple[str, Any]]:
    return [(line["text"], line["bbox"]) for line in lines(folder / "data.jsonl")]


def test_labels_are_found_beside_the_folder_of_pictures(tmp_path: Path) -> None:
    path = yolo(tmp_path, "1 0.5 0.5 0.25 0.5")
    for given in (path, tmp_path):
        assert sniff(given).name == "yolo"
        result = convert(given, tmp_path / "out", "--force")
        assert result.exit_code == 0, result.stderr
        assert boxes(tmp_path / "out") == [("book", [[60, 30, 100, 90]])]
        assert "pictures without a file of labels, of which no record is made: 1" in result.stderr
    [line] = lines(tmp_path / "out" / "data.jsonl")
    assert line["meta"]["source"] == "desk.txt:1"
    assert (tmp_path / "out" / line["image"]).samefile(tmp_path / "images" / "train" / "desk.png")
    assert convert(path, tmp_path / "out").stdout.endswith("unchanged, nothing to do\n")
    (tmp_path / "labels" / "train" / "desk.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    convert(path, tmp_path / "out", "--force")
    assert boxes(tmp_path / "out") == [("cup", [[60, 30, 100, 90]])]


def test_splits_are_folders_or_lists_and_one_is_chosen(tmp_path: Path) -> None:
    data = f"path: .\ntrain: images/train\nval: val.txt\n{NAMES}"
    path = yolo(tmp_path, "0 0.5 0.5 1 1", data=data)
    (tmp_path / "val.txt").write_text("./images/train/desk.png\n")
    several = convert(path, tmp_path / "out")
    assert (several.exit_code, several.stdout) == (2, "")
    assert several.stderr.startswith(f"error: {path}: has several splits: train, val\nhint: ")
    for split in ("train", "val"):
        assert convert(path, tmp_path / split, "--split", split).exit_code == 0
        assert boxes(tmp_path / split) == [("cup", [[0, 0, 160, 120]])]
    assert "there is no split 'test'" in convert(path, tmp_path / "out", "--split", "test").stderr


def test_roboflow_writes_one_folder_too_high(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    yolo(tmp_path / "train", "0 0.5 0.5 0.5 0.5", name="labels/train")
    (tmp_path / "data.yaml").write_text(f"train: ../train/images\n{NAMES}")
    assert convert(tmp_path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path / "out") == [("cup", [[40, 30, 120, 90]])]


def test_names_may_lie_in_classes_txt(tmp_path: Path) -> None:
    yolo(tmp_path, "1 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cup\nbook\n")
    assert convert(tmp_path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path / "out") == [("book", [[40, 30, 120, 90]])]


def test_rounding_is_no_box_outside_the_picture(tmp_path: Path) -> None:
    """Centre 1/3 and size 2/3, rounded to six decimals as tools do, reach half a millionth beyond the edge."""
    path = yolo(tmp_path, "0 0.333333 0.666667 0.666667 0.666667")
    assert convert(path, tmp_path / "out").exit_code == 0
    [(_, [box])] = boxes(tmp_path / "out")
    np.testing.assert_allclose(box, [0, 40, 320 / 3, 120], atol=1e-3)
    assert box[0] == 0 and box[3] == 120


def test_keypoints_and_outlines_are_remarked(tmp_path: Path) -> None:
    path = yolo(tmp_path, "0 0.5 0.5 0.5 0.5 0.3 0.3 2", data=f"kpt_shape: [1, 3]\ntrain: images/train\n{NAMES}")
    assert "labels with keypoints, which are left out: 1" in convert(path, tmp_path / "out").stderr
    assert boxes(tmp_path / "out") == [("cup", [[40, 30, 120, 90]])]
    (tmp_path / "data.yaml").write_text(f"train: images/train\n{NAMES}")
    (tmp_path / "labels" / "train" / "desk.txt").write_text("0 0.25 0.5 0.75 0.25 0.5 1\n")
    assert "outlines, of which the box around is taken: 1" in convert(path, tmp_path / "b").stderr
    assert boxes(tmp_path / "b") == [("cup", [[40, 30, 120, 120]])]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "there is no class '2'"),
        ("-1 0.5 0.5 0.1 0.1", "there is no class '-1'"),
        ("0000000001 0.5 0.5 0.1 0.1", "there is no class '0000000001'"),
        ("0 80 60 20 20", "line 2: bbox [80.0, 60.0, 20.0, 20.0] is not between 0 and 1, as cxcywh-norm1 says"),
        ("0 0.5 0.5 0.1", "line 2: a box is cx cy w h after the class, got 3 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2: a box is cx cy w h after the class, got 5 numbers"),
        *(
            (f"0 0.5 0.5 {number} 0.1", f"line 2: a label is a class and numbers, got '0.5 0.5 {number} 0.1'")
            for number in ("nan", "infinity", "1_0", "\u0661", "0x1", "1e999")
        ),
        ("\u0661 0.5 0.5 0.1 0.1", "there is no class '\u0661'"),
        ("0 0.5 half 0.1 0.1", "line 2: a label is a class and numbers, got '0.5 half 0.1 0.1'"),
        ("0 0.95 0.5 0.2 0.1", "bbox [136.0, 54.0, 168.0, 66.0] leaves the 160x120 image"),
        ("0 0.5 0.5 0 0.1", "is empty or inverted: x1 >= x2"),
    ],
)
def test_a_bad_label_is_told_at_its_line(tmp_path: Path, label: str, message: str) -> None:
    path = yolo(tmp_path, "", label, "1 0.5 0.5 0.5 0.5")
    result = convert(path, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'labels' / 'train' / 'desk.txt'}:2: ")
    assert message in result.stderr
    assert convert(path, tmp_path / "out", "--on-error", "report").exit_code == 0
    assert boxes(tmp_path / "out") == [("book", [[40, 30, 120, 90]])]


# Each list holds the one before it ten times: a few lines that say 10^12 words when they are written out.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (f"train: images/none\n{NAMES}", ": there is no "),
        (NAMES, ": names no pictures: 'train', 'val' or 'test' is missing"),
        ("train: images/train\n", ": 'names' must be the classes' names"),
        ("train: images/train\nnames: [cup, cup]\n", ": two classes have the same name, 'cup'"),
        ("train: images/train\nnames: {a: cup}\n", ": class 'a' is named 'cup'"),
        (f"{BOMB}train: images/train\nnames: [*a11]\n", ": class 0 is named [[[["),
        (f"{BOMB}train: [*a11]\n{NAMES}", ": a split is a folder or a text file of pictures, got [[[["),
        (f"train: images/train\nnc: 3\n{NAMES}", ": 'nc' is 3, but there are 2 names"),
        (f"path: gone\ntrain: images/train\n{NAMES}", "as 'path' says"),
        ("train: [\nnames: x: y", ":2: not valid YAML: "),
        ("- train", ": must be an object with 'names' and 'train'"),
        ("train: !!python/object:os.system {}", ":1: not valid YAML: could not determine a constructor"),
    ],
)
def test_what_is_wrong_in_data_yaml_is_told(tmp_path: Path, data: str, message: str) -> None:
    path = yolo(tmp_path, "0 0.5 0.5 0.5 0.5", data=data)
    result = convert(path, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}") and message in result.stderr.splitlines()[0]


# --- Pascal VOC ---------------------------------------------------------------------------------------------


def thing(name: str, *corners: object) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{number}</{tag}>" for tag, number in tags)
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>\n"


def voc(folder: Path, *objects: str, size: tuple[int, int] = (160, 120)) -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pictures(folder / "JPEGImages")
    head = f"<filename>desk.png</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"
    path = folder / "Annotations" / "desk.xml"
    path.write_text(f"<annotation>{head}\n{''.join(objects)}</annotation>")
    return path


def test_the_development_kit_counts_pixels_from_1(tmp_path: Path) -> None:
    """The box of all pixels of the picture is the whole picture; so is that of a mask of these pixels."""
    mask = np.zeros((120, 160), bool)
    mask[29:60, 9:20] = True  # rows 30 to 60 and columns 10 to 20, counted from 1
    rows, columns = np.nonzero(mask)
    whole, part = thing("desk", 1, 1, 160, 120), thing("cup", 10, 30, 20, 60)
    voc(tmp_path, whole, part)
    result = convert(tmp_path, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert boxes(tmp_path / "out") == [("desk", [[0, 0, 160, 120]]), ("cup", [[int(number) for number in around]])]
    assert "boxes read as pixels that count from 1 (--box-format xyxy if they count from 0): 2" in result.stderr
    assert convert(tmp_path, tmp_path / "plain", "--box-format", "xyxy").exit_code == 0
    assert boxes(tmp_path / "plain") == [("desk", [[1, 1, 160, 120]]), ("cup", [[10, 30, 20, 60]])]


@pytest.mark.parametrize("corners", [(0, 30, 20, 60), (10.5, 30, 20, 60.25)])
def test_a_number_that_no_pixel_from_1_has_tells_for_the_whole_data_set(tmp_path: Path, corners: Any) -> None:
    voc(tmp_path, thing("desk", 1, 1, 160, 120), thing("cup", *corners))
    result = convert(tmp_path, tmp_path / "out")
    assert "boxes read as corners that count from 0, as some numbers can be nothing else: 2" in result.stderr
    assert boxes(tmp_path / "out") == [("desk", [[1, 1, 160, 120]]), ("cup", [list(corners)])]


def test_a_split_of_the_development_kit(tmp_path: Path) -> None:
    voc(tmp_path, thing("cup", 10, 30, 20, 60))
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("desk\n")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("desk\nshelf\n")
    assert convert(tmp_path, tmp_path / "out", "--split", "train").exit_code == 0
    assert len(boxes(tmp_path / "out")) == 1
    missing = convert(tmp_path, tmp_path / "val", "--split", "val")
    assert "val.txt: shelf has no XML file, and 1 in all have none" in missing.stderr
    other = convert(tmp_path, tmp_path / "val", "--split", "test")
    assert "no such list of the split\nhint: there are train, val\n" in other.stderr


def test_corners_are_those_that_the_standard_library_reads(tmp_path: Path) -> None:
    path = voc(tmp_path, thing("cup", 10, 30, 20, 60), thing("cup", 50, 31, 60, 61))
    found = ElementTree.parse(path).getroot().findall("object/bndbox")
    expected = [[float(box.findtext(tag, "")) for tag in ("xmin", "ymin", "xmax", "ymax")] for box in found]
    assert convert(path, tmp_path / "out", "--box-format", "xyxy").exit_code == 0
    assert boxes(tmp_path / "out") == [("cup", expected)]


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>\n<annotation><filename>&c;</filename></annotation>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, ":1: a document type is not read"),
        (OUTSIDE, ":1: a document type is not read"),
        ("<annotation>\n<filename>desk.png", ":2: not valid XML: no element found at column 19"),
        ("", ":1: not valid XML: no element found at column 1"),
        ("<other/>", ":1: <other> is no <annotation>"),
        ("<annotation/>", ":1: no <filename>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', ":1: "),
    ],
)
def test_a_document_that_cannot_be_read_is_told_at_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = voc(tmp_path)
    path.write_text(text)
    result = convert(path, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}{message}")
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("objects", "size", "message"),
    [
        (thing("cup", 1, 1, "x", 9), (160, 120), ":2: <xmax> must be a number, got 'x'"),
        (thing("", 1, 1, 8, 9), (160, 120), ":2: an object has no <name>"),
        ("<object><name>cup</name></object>", (160, 120), ":2: the object 'cup' has no <bndbox>"),
        (f"{thing('cup', 1, 1, 8, 9)[:-10]}<bndbox/></object>", (160, 120), ":2: the object 'cup' has several"),
        (thing("cup", 1, 1, 161, 9), (160, 120), ":2: bbox [0.0, 0.0, 161.0, 9.0] leaves the 160x120 image"),
        (thing("cup", 1, 1, 8, 9), (320, 240), ":2: the data is for a 320x240 picture"),
    ],
)
def test_a_bad_object_is_told_at_its_line(tmp_path: Path, objects: str, size: Any, message: str) -> None:
    path = voc(tmp_path, objects, size=size)
    result = convert(tmp_path, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}{message}")


def test_a_turned_picture_takes_the_frame_that_its_size_tells(tmp_path: Path) -> None:
    voc(tmp_path, thing("cup", 1, 1, 20, 60), size=(120, 160))
    turned, stream = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6  # stored lying, shown upright by a quarter turn clockwise
    Image.new("RGB", (160, 120)).save(stream, "PNG", exif=turned)
    (tmp_path / "JPEGImages" / "desk.png").write_bytes(stream.getvalue())
    assert convert(tmp_path, tmp_path / "out").exit_code == 0
    assert boxes(tmp_path / "out") == [("cup", [[0, 0, 20, 60]])]
    voc(tmp_path, thing("cup", 1, 1, 60, 20))
    Image.new("RGB", (160, 120)).save(tmp_path / "JPEGImages" / "desk.png", exif=turned)
    assert convert(tmp_path, tmp_path / "stored").exit_code == 0
    assert boxes(tmp_path / "stored") == [("cup", [[100, 0, 120, 60]])]
