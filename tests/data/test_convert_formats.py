"""Every format has an example whose canonical lines were written by hand from the format's description."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from data.converting import GOLDEN, convert, lines, pictures, write_json
from edgetune_data.formats import BUILT_IN, sniff
from edgetune_data.formats.base import BOX_FORMATS
from edgetune_data.formats.canonical import VERSION, record_schema
from edgetune_data.read import load, open_records
from edgetune_runtime.records import read_entries, record_of

INPUTS = {
    "swift": ("swift", "input.jsonl"),
    "llava": ("llava", "input.json"),
    "roboflow": ("roboflow", "input.jsonl"),
    "coco": ("coco", "input.json"),
    "refcoco": ("refcoco", "refs(unc).json"),
    "grefcoco": ("refcoco", "."),
    "labelstudio": ("labelstudio", "input.json"),
    "csv": ("csv", "input.csv"),
    "vqa_pair": ("vqa", "."),
    "vqa_flat": ("vqa", "input.json"),
    "edgetune": ("edgetune", "input.jsonl"),
    "yolo": ("yolo", "data.yaml"),
    "voc": ("voc", "."),
    "cvat": ("cvat", "annotations.xml"),
    "vlm-r1": ("vlm-r1", "input.json"),
    "openai": ("openai", "input.jsonl"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples' folders, each with the pictures that they name."""
    for example in INPUTS:
        shutil.copytree(GOLDEN / example, tmp_path / example)
        pictures(tmp_path / example)
        for number in (9, 25):
            Image.new("RGB", (64, 48)).save(tmp_path / example / f"COCO_train2014_{number:012d}.jpg")
    return tmp_path


@pytest.mark.parametrize("name", INPUTS)
def test_an_example_becomes_the_lines_written_by_hand(folder: Path, name: str) -> None:
    known, file = INPUTS[name]
    path = folder / name / file
    assert sniff(path).name == known
    result = convert(path, folder / name / "out")
    assert result.exit_code == 0, result.stderr
    written = folder / name / "out" / "data.jsonl"
    assert lines(written) == lines(GOLDEN / name / "expected.jsonl")
    schema = Draft202012Validator(record_schema())
    assert [error.message for line in lines(written) for error in schema.iter_errors(line)] == []
    assert len(read_entries(written)) == len(lines(written))
    named = convert(path, folder / name / "out", "--format", known)
    assert named.stdout.endswith("unchanged, nothing to do\n")


@pytest.mark.parametrize("name", INPUTS)
def test_reading_in_place_gives_the_same_records_as_the_converted_file(folder: Path, name: str) -> None:
    path = folder / name / INPUTS[name][1]
    convert(path, folder / name / "out")

    def facts(entry: Any) -> tuple[Any, ...]:
        boxes = getattr(entry, "boxes", None)
        said = getattr(entry, "turns", None) or (entry.text, entry.labels, entry.answers, entry.request)
        shown = [image.resolve() for image in entry.images]
        return entry.id, said, shown, None if boxes is None else boxes.tolist()

    direct, converted = load(path), read_entries(folder / name / "out" / "data.jsonl")
    assert [facts(entry) for entry in direct] == [facts(entry) for entry in converted]
    decoded = [record_of(value, Path(), source) for value, source in open_records(path)]
    assert [facts(entry) for entry in decoded] == [facts(entry) for entry in direct]


def test_a_pickle_of_refs_is_read_as_the_json_is(folder: Path) -> None:
    refs = json.loads((folder / "refcoco" / "refs(unc).json").read_text())
    (folder / "refcoco" / "refs(unc).json").unlink()
    pickled = folder / "refcoco" / "refs(unc).p"
    for protocol in (0, 2, 4):
        pickled.write_bytes(pickle.dumps(refs, protocol=protocol))
        assert convert(folder / "refcoco", folder / "refcoco" / "out").exit_code == 0
        written = lines(folder / "refcoco" / "out" / "data.jsonl")
        texts = [(line["text"], line["bbox"], line["image"]) for line in written]
        expected = lines(GOLDEN / "refcoco" / "expected.jsonl")
        assert texts == [(line["text"], line["bbox"], line["image"]) for line in expected]


class Trap:
    """Runs code when a pickle of it is loaded by the plain unpickler."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("touched"),)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = folder / "refcoco" / "refs(evil).p"
    path.write_bytes(pickle.dumps([Trap()]))
    result = convert(path, folder / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: not a pickle of plain values: it asks for pathlib")
    assert not (folder / "touched").exists()
    pickle.loads(path.read_bytes())
    assert (folder / "touched").exists()


@pytest.mark.parametrize(
    ("pickled", "problem"),
    [
        (b"\x80\x02]r\xff\xff\xff\x3f.", "LONG_BINPUT (byte 3) asks for more than the file's 9 bytes"),
        (b"]p1073741823\n.", "PUT (byte 1) asks for more than the file's 14 bytes"),
        (
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",
            "expected 1152921504606846975 bytes in a bytes8, but only 1",
        ),
    ],
)
def test_a_pickle_that_asks_for_more_memory_than_its_size_is_refused(
    tmp_path: Path, pickled: bytes, problem: str
) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickled)
    write_json(tmp_path / "instances.json", {"images": [], "annotations": [], "categories": []})
    result = convert(path, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: not a pickle of plain values: {problem}")


def test_one_split_of_refcoco(folder: Path) -> None:
    result = convert(folder / "refcoco" / "refs(unc).json", folder / "val", "--split", "val")
    assert [line["text"] for line in lines(folder / "val" / "data.jsonl")] == ["book"]
    assert "refs of other splits: 1" in result.stderr
    nothing = convert(folder / "refcoco" / "refs(unc).json", folder / "none", "--split", "tset")
    assert nothing.exit_code == 2


def parquet(path: Path, columns: dict[str, list[Any]], *, image: bool = False) -> None:
    table = datasets.Dataset.from_dict(columns)
    table = table.cast_column("image", datasets.Image()) if image else table
    table.to_parquet(str(path))


def test_parquet_with_pictures_inside(folder: Path) -> None:
    data = (folder / "csv" / "desk.png").read_bytes()
    inside = [{"bytes": data, "path": "a.png"}, {"bytes": data, "path": "b.png"}]
    parquet(folder / "a.parquet", {"image": inside, "text": ["cup", "book"], "bbox": [[1, 2, 3, 4], []]}, image=True)
    result = convert(folder / "a.parquet", folder / "out")
    assert result.exit_code == 0, result.stderr
    written = lines(folder / "out" / "data.jsonl")
    assert [(line["text"], line["bbox"]) for line in written] == [("cup", [[1, 2, 3, 4]]), ("book", [])]
    [name] = {line["image"] for line in written}
    assert (folder / "out" / name).read_bytes() == data
    assert len(read_entries(folder / "out" / "data.jsonl")) == 2


def test_parquet_with_conversations_and_a_folder_of_splits(folder: Path) -> None:
    said = [[{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Ho"}]]
    (folder / "set").mkdir()
    pictures(folder / "set")
    parquet(folder / "set" / "train-00000-of-00001.parquet", {"messages": said, "images": [["desk.png"]]})
    parquet(folder / "set" / "test-00000-of-00001.parquet", {"messages": said * 2, "images": [["shelf.png"]] * 2})
    result = convert(folder / "set", folder / "out")
    assert (result.exit_code, "files of several splits: test, train" in result.stderr) == (2, True)
    assert convert(folder / "set", folder / "out", "--split", "train").exit_code == 0
    assert lines(folder / "out" / "data.jsonl") == [
        {
            "messages": [{"role": "user", "content": "<image>Hi"}, {"role": "assistant", "content": "Ho"}],
            "images": ["../set/desk.png"],
            "meta": {"source": "train-00000-of-00001.parquet#0"},
        }
    ]


@pytest.mark.parametrize(
    ("box_format", "numbers"),
    [
        ("xyxy", (16, 30, 96, 90)),
        ("xywh", (16, 30, 80, 60)),
        ("xyxy-norm1", (0.1, 0.25, 0.6, 0.75)),
        ("xywh-norm1", (0.1, 0.25, 0.5, 0.5)),
        ("cxcywh-norm1", (0.35, 0.5, 0.5, 0.5)),
        ("xyxy-norm1000", (100, 250, 600, 750)),
    ],
)
def test_one_box_in_every_format_and_under_other_column_names(
    folder: Path, box_format: str, numbers: tuple[float, ...]
) -> None:
    assert box_format in BOX_FORMATS
    path = folder / "csv" / "boxes.tsv"
    path.write_text("file\tcaption\tbbox\ndesk.png\tcup\t" + ", ".join(map(str, numbers)) + "\n")
    columns = ("--column", "image=file", "--column", "text=caption")
    result = convert(path, folder / "out", *columns, "--box-format", box_format)
    assert result.exit_code == 0, result.stderr
    [line] = lines(folder / "out" / "data.jsonl")
    assert (line["text"], line["bbox"]) == ("cup", [[16, 30, 96, 90]])


def test_rows_of_one_phrase_are_grouped_on_request(folder: Path) -> None:
    path = folder / "csv" / "rows.csv"
    rows = ["desk.png,cup,1,2,30,40,mug", "shelf.png,cup,1,2,30,40,cup", "desk.png,cup,5,6,70,80,cup"]
    path.write_text("\n".join(["image,text,x1,y1,x2,y2,label", *rows]) + "\n")
    convert(path, folder / "single")
    assert [line["bbox"] for line in lines(folder / "single" / "data.jsonl")] == [
        [[1, 2, 30, 40]],
        [[1, 2, 30, 40]],
        [[5, 6, 70, 80]],
    ]
    convert(path, folder / "grouped", "--group-rows")
    both, alone = lines(folder / "grouped" / "data.jsonl")
    assert (both["bbox"], both["label"]) == ([[1, 2, 30, 40], [5, 6, 70, 80]], ["mug", "cup"])
    assert alone["image"] == "../csv/shelf.png"


def test_the_command_line_knows_the_formats() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data_convert.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| `--format` \| (.*), or a format of another package", page, re.MULTILINE)
    assert re.findall(r"`(.+?)`", row) == [format.name for format in BUILT_IN]
    assert record_schema()["$id"].endswith(f":{VERSION}")


def test_records_of_edgetune_may_be_an_array(tmp_path: Path) -> None:
    pictures(tmp_path)
    value = {"image": "desk.png", "text": "cup", "bbox": [1, 2, 30, 40]}
    path = write_json(tmp_path / "array.json", [value])
    assert sniff(path).name == "edgetune"
    assert convert(path, tmp_path / "out").exit_code == 0
    assert lines(tmp_path / "out" / "data.jsonl") == [{**value, "image": "../desk.png"}]
    assert [(record.source, record.images) for record in load(path)] == [("array.json#0", (tmp_path / "desk.png",))]


def test_what_is_no_known_format_is_named(tmp_path: Path) -> None:
    result = convert(write_json(tmp_path / "a.json", {"rows": []}), tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'a.json'}: not recognised as any of csv, parquet, roboflow, ")
