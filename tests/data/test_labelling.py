"""Proposals for people to label: their order, and the files that other programs read them from."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.converting import convert, lines, write_json
from edgetune_core.overlap import perceptual_hash
from edgetune_data.labelling import uncertainty
from edgetune_data.labelling.order import arrange
from edgetune_data.labelling.propose import check_headers, pictures_in, propose
from edgetune_data.labelling.tasks import Tasks
from edgetune_data.near_duplicates import leaders
from edgetune_runtime.answer import Answer, Detection
from edgetune_runtime.codec.grounding import ParsedAnswer
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.records import read_records
from edgetune_runtime.timing import Timings

NO_TIME = Timings(0.0, 0.0, 0.0, 0.0, 0.0, 0)


class Told:
    """A `Runner` whose answers about a picture follow from its size, so that tests know them without a model."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def request(self, phrase: str) -> str:
        if not phrase.strip():
            raise InputError("the phrase is empty")
        return phrase

    def answer(self, image: Any, prompt: str, *, max_new_tokens: int = 128) -> Answer:
        self.asked.append((image.width, prompt))
        found: list[Detection] = []
        if prompt == "cup":
            found = [
                Detection((8.25, 4.0, 20.5, 12.0), "a cup", 1 - image.width / 1000),
                Detection((-1.0, 2.0, 6.0, image.height + 0.5), "a cup", 0.99),
            ]
        refused = prompt == "jar"
        said = ParsedAnswer("…", found, prompt != "dog", None, refused, 0.999 if refused else None)
        return Answer.of(said, NO_TIME)

    def ground(self, image: Any, phrase: str, *, max_new_tokens: int = 128) -> list[Detection]:
        return self.answer(image, phrase).detections

    def ask(self, image: Any, question: str, *, max_new_tokens: int = 256) -> str:
        raise NotImplementedError

    def stream(self, image: Any, prompt: str, *, max_new_tokens: int = 256) -> Any:
        raise NotImplementedError


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture that is like no other one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of widths 100 to 500; the second is there again, nearly the same."""
    pictures = tmp_path / "night shift"
    (pictures / "b").mkdir(parents=True)
    for number in range(1, 6):
        noise(number, (100 * number, 48)).save(pictures / ("b" if number > 3 else "") / f"{number} é&<.png")
    noise(2, (200, 48)).save(pictures / "b" / "again.jpg", quality=95)
    (pictures / "notes.txt").write_text("none")
    (pictures / ".hidden.png").write_bytes(b"")
    return pictures


def proposed(folder: Path, output: Path, *phrases: str, **options: Any) -> Path:
    names, others = pictures_in(folder)
    assert others == 1
    propose(Told(), folder, names, phrases or ("cup", "jar"), output, **options)
    return output


def names_in(folder: Path, file: Path, by: Any = "uncertain", seed: int = 0) -> list[str]:
    return [picture.name for picture in arrange([file], folder, by=by, near=6, seed=seed)[0]]


def test_an_answer_is_as_unsure_as_what_it_says_least_surely() -> None:
    cup, jar = Detection((0, 0, 1, 1), "cup", 0.75), Detection((0, 0, 1, 1), "jar", 0.5)
    unknown = Detection((0, 0, 1, 1), "cup")

    def unsure(*found: Detection, **changes: Any) -> float:
        told = {"complete": True, "problem": None, "refused": False} | changes
        return uncertainty.of_answer(ParsedAnswer("…", list(found), **told))

    assert (unsure(cup), unsure(cup, jar), unsure(jar, cup)) == (0.25, 0.5, 0.5)
    assert unsure(refused=True, refusal_score=0.875) == 0.125
    assert unsure() == unsure(refused=True) == unsure(cup, unknown) == unsure(cup, complete=False) == 1.0
    assert uncertainty.of_picture([0.125, 0.5, 0.25]) == 0.5


def test_the_least_sure_come_first_and_what_is_nearly_the_same_last(folder: Path, tmp_path: Path) -> None:
    file = proposed(folder, tmp_path / "proposals.jsonl")
    assert names_in(folder, file) == [
        "b/5 é&<.png",
        "b/4 é&<.png",
        "3 é&<.png",
        "2 é&<.png",
        "1 é&<.png",
        "b/again.jpg",
    ]
    pictures, rejected = arrange([file], folder, by="uncertain", near=6, seed=0)
    *first, again = pictures
    assert [picture.uncertainty for picture in first] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert (again.duplicate_of, again.group) == ("2 é&<.png", first[3].group)
    assert sorted(picture.group for picture in first) == [1, 2, 3, 4, 5]
    assert rejected == []
    # With no bit of tolerance, a copy saved as JPEG with its own hash is a picture like any other.
    exact = arrange([file], folder, by="uncertain", near=0, seed=0)[0]
    hashes = {perceptual_hash(Image.open(path).convert("RGB")).tobytes() for path in folder.rglob("[!.]*.??g")}
    assert len(set(exact.groups)) == len(hashes)


def test_other_orders(folder: Path, tmp_path: Path) -> None:
    file = proposed(folder, tmp_path / "proposals.jsonl")
    least_sure, shuffled = names_in(folder, file), names_in(folder, file, "random")
    assert sorted(shuffled) == sorted(least_sure)
    assert shuffled == names_in(folder, file, "random")
    assert len({tuple(names_in(folder, file, "random", seed)) for seed in range(8)}) > 3


def test_pictures_that_are_labelled_are_not_asked_about_and_lead_their_copies(folder: Path, tmp_path: Path) -> None:
    first = proposed(folder, tmp_path / "all.jsonl")
    [known] = [line["sha256"] for line in lines(first) if line["image"] == "2 é&<.png"]
    file = proposed(folder, tmp_path / "rest.jsonl", known={known})
    pictures = list(arrange([file], folder, by="uncertain", near=6, seed=0)[0])
    assert "2 é&<.png" not in [picture.name for picture in pictures]
    assert (pictures[-1].name, pictures[-1].duplicate_of) == ("b/again.jpg", "2 é&<.png")


def test_an_interrupted_run_goes_on_after_the_last_whole_line(folder: Path, tmp_path: Path) -> None:
    whole = proposed(folder, tmp_path / "whole.jsonl").read_bytes()
    every = whole.splitlines(keepends=True)
    partial = tmp_path / "partial.jsonl"
    partial.write_bytes(b"".join(every[:2]) + every[2][:40])
    runner = Told()
    propose(runner, folder, pictures_in(folder)[0], ("cup", "jar"), partial)
    assert partial.read_bytes() == whole
    assert len(runner.asked) == 2 * (len(every) - 2)


def test_a_picture_that_cannot_be_read_stops_or_is_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "c.png").write_bytes((folder / "1 é&<.png").read_bytes()[:-60])
    (folder / "d.jpg").write_bytes(b"no picture")
    names = pictures_in(folder)[0]
    with pytest.raises(ImageError, match=r"d\.jpg"):
        check_headers(folder, names)
    with pytest.raises(ImageError, match=r"c\.png: broken or truncated"):
        proposed(folder, tmp_path / "stop.jsonl")
    file = proposed(folder, tmp_path / "report.jsonl", on_error="report")
    pictures, rejected = arrange([file], folder, by="uncertain", near=6, seed=0)
    assert [line["image"] for line in rejected] == ["c.png", "d.jpg"]
    assert len(pictures) == len(names) - 2


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 32))
def test_leaders_are_those_of_the_definition(numbers: list[int], near: int) -> None:
    rows = np.array([list(number.to_bytes(8, "big")) for number in numbers], dtype=np.uint8).reshape(-1, 8)
    expected: list[int] = []
    for row, number in enumerate(numbers):
        heads = [head for head in sorted(set(expected)) if (numbers[head] ^ number).bit_count() <= near]
        expected.append(heads[0] if heads else row)
    assert leaders(rows, near).tolist() == expected


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> Path:
    """A folder with the files of all tools; half of the boxes leave the picture."""
    output = tmp_path / "out"
    output.mkdir()
    file = proposed(folder, output / "proposals.jsonl", "cup", "jar", "dog")
    pictures = arrange([file], folder, by="uncertain", near=6, seed=0)[0]
    counts = Tasks(pictures, ("cup", "jar", "dog"), "tiny 0123").write(output)
    assert counts == {"boxes": 12, "cut": 6, "left_out": 0, "unread": 6}
    return output


def truth(folder: Path) -> Iterator[tuple[str, list[list[float]]]]:
    for path in folder.rglob("[!.]*.??g"):
        yield path.relative_to(folder).as_posix(), [[8.25, 4, 20.5, 12], [0, 2, 6, 48]]


def test_coco_is_read_by_its_own_evaluation(folder: Path, written: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(written / "coco.json"))
        names = {image["id"]: image["file_name"] for image in read.loadImgs(read.getImgIds())}
        boxes: dict[str, list[list[float]]] = {name: [] for name in names.values()}
        for one in read.loadAnns(read.getAnnIds(catIds=read.getCatIds(catNms=["cup"]))):
            x, y, width, height = one["bbox"]
            boxes[names[one["image_id"]]].append([x, y, x + width, y + height])
        assert boxes == dict(truth(folder))
        # Its scores are those of results: scored against themselves, all are found.
        keys = ("image_id", "category_id", "bbox", "score")
        results = read.loadRes([{key: one[key] for key in keys} for one in read.loadAnns(read.getAnnIds())])
        scored = COCOeval_faster(read, results, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    assert scored.stats[0] == pytest.approx(1.0)
    [widest] = [image for image in read.dataset["images"] if image["width"] == 500]
    assert (widest["id"], widest["uncertainty"]) == (1, 1.0)  # "dog" was not understood


def test_cvat_is_what_its_documentation_says(folder: Path, written: Path) -> None:
    root = ElementTree.parse(written / "cvat.xml").getroot()
    assert (root.tag, root.findtext("version")) == ("annotations", "1.1")
    assert [name.text for name in root.findall("meta/task/labels/label/name")] == ["cup", "jar", "dog"]
    images = root.findall("image")
    assert [image.get("id") for image in images] == [str(number) for number in range(6)]
    assert [image.get("name") for image in images] == (written / "pictures.txt").read_text().splitlines()
    found = {}
    for image in images:
        with Image.open(folder / str(image.get("name"))) as picture:
            assert (image.get("width"), image.get("height")) == tuple(map(str, picture.size))
        corners = [[float(box.get(side, "")) for side in ("xtl", "ytl", "xbr", "ybr")] for box in image.findall("box")]
        found[image.get("name")] = corners
        assert {box.get("label") for box in image.findall("box")} == {"cup"}
        assert {(box.get("source"), box.get("occluded"), box.get("z_order")) for box in image} == {("auto", "0", "0")}
        scores = [box.findtext("attribute[@name='score']") for box in image.findall("box")]
        assert scores == [f"{1 - int(str(image.get('width'))) / 1000:g}", "0.99"]
    assert found == dict(truth(folder))
    labels = json.loads((written / "cvat_labels.json").read_text())
    assert [label["name"] for label in labels] == ["cup", "jar", "dog"]
    assert {label["attributes"][0]["name"] for label in labels} == {"score"}


def test_label_studio_gets_percents_and_an_interface_for_them(folder: Path, written: Path) -> None:
    tasks = json.loads((written / "labelstudio.json").read_text())
    found = {}
    for task in tasks:
        query = parse_qs(urlsplit(task["data"]["image"]).query)["d"][0]
        path = folder.parent / query  # below the root that Label Studio is started with
        assert path.is_file() and task["data"]["image"].startswith("/data/local-files/?d=")
        [prediction] = task["predictions"]
        assert prediction["model_version"] == "tiny 0123"
        assert prediction["score"] == pytest.approx(1 - task["data"]["uncertainty"])
        boxes = []
        for region in prediction["result"]:
            with Image.open(path) as picture:
                assert (region["original_width"], region["original_height"]) == picture.size
            value = region["value"]
            x, y = value["x"] * region["original_width"] / 100, value["y"] * region["original_height"] / 100
            width = value["width"] * region["original_width"] / 100
            boxes.append([x, y, x + width, y + value["height"] * region["original_height"] / 100])
            assert (region["type"], value["rectanglelabels"]) == ("rectanglelabels", ["cup"])
        found[query.removeprefix("night shift/")] = boxes
        assert len({region["id"] for region in prediction["result"]}) == 2
    expected = dict(truth(folder))
    assert set(found) == set(expected)
    for name, boxes in found.items():
        assert np.array(boxes) == pytest.approx(np.array(expected[name]))
    view = ElementTree.parse(written / "labelstudio.xml").getroot()
    control, shown = view.find("RectangleLabels"), view.find("Image")
    assert control is not None and shown is not None
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert {(one["from_name"], one["to_name"]) for one in regions} == {(control.get("name"), shown.get("name"))}
    assert [label.get("value") for label in control] == ["cup", "jar", "dog"]
    assert shown.get("value") == "$image"


def test_records_are_ours_and_say_where_they_come_from(written: Path) -> None:
    records = read_records(written / "records.jsonl")
    assert [(record.text, len(record.boxes if record.boxes is not None else ())) for record in records[:2]] == [
        ("cup", 2),
        ("jar", 0),
    ]
    assert {record.text for record in records} == {"cup", "jar"}  # nothing is claimed of the answer that was no answer
    first = lines(written / "records.jsonl")[0]["meta"]
    assert (first["proposed_by"], first["scores"], first["uncertainty"]) == ("tiny 0123", [0.5, 0.99], 0.5)


@pytest.mark.parametrize(("name", "root"), [("cvat.xml", ""), ("coco.json", ""), ("labelstudio.json", "..")])
def test_what_a_tool_gives_back_untouched_is_what_was_proposed(
    folder: Path, written: Path, tmp_path: Path, name: str, root: str
) -> None:
    """An export without a change; Label Studio's submits every prediction as its annotation."""
    path = written / name
    if name == "labelstudio.json":
        tasks = json.loads(path.read_text())
        for task in tasks:
            task["annotations"] = [{"result": task["predictions"][0]["result"]}]
        path = write_json(tmp_path / "export.json", tasks)
    phrases = [word for phrase in ("cup", "jar", "dog") for word in ("--absent", phrase)]
    result = convert(path, tmp_path / "back", "--image-root", str(folder / root), *phrases)
    assert result.exit_code == 0, result.stderr
    back = {(Path(one["image"]).name, one["text"]): one["bbox"] for one in lines(tmp_path / "back" / "data.jsonl")}
    expected = dict(truth(folder))
    assert len(back) == 18
    for (image, phrase), boxes in back.items():
        [key] = [key for key in expected if Path(key).name == image]
        assert boxes == (expected[key] if phrase == "cup" else [])


def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    """Ten times the pictures take a few hundred bytes more for each: a place, a name and a hash, no answers."""

    def peak(count: int) -> int:
        folder, output = tmp_path / str(count), tmp_path / f"out{count}"
        folder.mkdir()
        output.mkdir()
        noise(count, (64, 48)).save(folder / "0.png")
        for number in range(1, count):
            (folder / f"{number}.png").hardlink_to(folder / "0.png")
        tracemalloc.start()
        names, _ = pictures_in(folder)
        propose(Quiet(), folder, names, ["cup"] * 1, output / "proposals.jsonl")
        pictures, _ = arrange([output / "proposals.jsonl"], folder, by="uncertain", near=6, seed=0)
        Tasks(pictures, ["cup"], "tiny").write(output)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    class Quiet(Told):
        def answer(self, image: Any, prompt: str, *, max_new_tokens: int = 128) -> Answer:
            text = "x" * 20_000
            return Answer.of(ParsedAnswer(text, [Detection((1, 1, 9, 9), "cup", 0.5)], True, None, False), NO_TIME)

    peak(10)  # what is imported and cached once
    small, large = peak(50), peak(500)
    assert (large - small) / 450 < 2_000


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder of pictures"):
        pictures_in(tmp_path / "none")
    with pytest.raises(InputError, match="no pictures"):
        pictures_in(tmp_path)
