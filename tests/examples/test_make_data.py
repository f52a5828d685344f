"""Records and pictures that `make_data.py` writes, read the way the tools read them."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import make_data
import scenes
from edgetune_runtime.records import Record, read_records

COUNTS = {"train": 6, "val": 2, "test": 4}
QUERIES = 4


def write(folder: Path, domain: str, seed: int) -> Path:
    counts = [word for split, count in COUNTS.items() for word in (f"--{split}", str(count))]
    options = ["--domain", domain, "--queries", str(QUERIES), "--seed", str(seed)]
    make_data.main(["--output", str(folder), *counts, *options])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", params=["base", "night"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp(request.param), request.param, seed=5)


def records(folder: Path) -> dict[str, list[Record]]:
    return {split: read_records(folder / f"{split}.jsonl") for split in COUNTS}


def test_every_split_reads_without_error_and_is_complete(folder: Path) -> None:
    for split, rows in records(folder).items():
        assert len(rows) == COUNTS[split] * QUERIES
        assert set(Counter(row.image for row in rows).values()) == {QUERIES}


def test_boxes_lie_in_their_pictures(folder: Path) -> None:
    for rows in records(folder).values():
        for row in rows:
            with Image.open(row.image) as picture:
                assert picture.size in scenes.CANVASES
                for x1, y1, x2, y2 in [] if row.boxes is None else row.boxes.tolist():
                    assert 0 <= x1 < x2 <= picture.width and 0 <= y1 < y2 <= picture.height


def test_splits_share_no_picture(folder: Path) -> None:
    pictures = {
        split: {hashlib.sha256(row.image.read_bytes()).hexdigest() for row in rows}
        for split, rows in records(folder).items()
    }
    assert {split: len(hashes) for split, hashes in pictures.items()} == COUNTS
    assert len(set.union(*pictures.values())) == sum(COUNTS.values())


def test_there_are_phrases_with_boxes_absent_objects_and_questions(folder: Path) -> None:
    kinds = Counter(
        "question" if row.boxes is None else "present" if len(row.boxes) else "absent"
        for rows in records(folder).values()
        for row in rows
    )
    assert set(kinds) == {"question", "present", "absent"} and kinds["present"] > sum(kinds.values()) / 2


def test_only_the_night_shows_objects_that_the_base_model_has_not_seen() -> None:
    novel = set(scenes.NOVEL)
    shown = {
        domain: Counter(
            thing.kind in novel for scene, _ in make_data.draw("train", domain, 0, 200, 1) for thing in scene.things
        )
        for domain in ("base", "night")
    }
    assert not shown["base"][True]
    assert 0.2 < shown["night"][True] / shown["night"].total() < 0.5


def test_the_same_seed_writes_the_same_bytes_and_another_one_others(folder: Path, tmp_path: Path) -> None:
    domain = "night" if "night" in folder.name else "base"
    assert contents(write(tmp_path / "again", domain, seed=5)) == contents(folder)
    other = contents(write(tmp_path / "other", domain, seed=6))
    assert not set(other.values()) & set(contents(folder).values())
