"""The numbers of a data set are those that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from click.testing import CliRunner
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from data.broken import Writer
from edgetune.cli import cli

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"


def write(folder: Path) -> Path:
    writer = Writer(folder)
    for name, size in {"a.png": (400, 200), "b.png": (320, 320)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / name)
    writer.add({"image": "a.png", "text": "the left mug", "bbox": [[0, 0, 100, 50], [300, 150, 400, 200]]})
    writer.add({"image": "a.png", "text": "the cactus", "bbox": []})
    writer.add({"image": "b.png", "text": "the jug", "bbox": [80, 80, 240, 240], "label": "jug"})
    writer.add({"image": "b.png", "question": "What is it?", "answer": "a jug"})
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Near <bbox>."}]
    writer.add({"messages": turns, "images": ["b.png"], "objects": {"bbox": [[160, 20]]}})
    return writer.write("data.jsonl")


def counted(path: Path, *arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["data", "stats", str(path), *arguments, "--json"], prog_name="edgetune")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_counts_and_spreads(tmp_path: Path) -> None:
    found = counted(write(tmp_path))
    assert found["records"] == 5 and found["images"] == 2
    assert found["kinds"] == {"ground": 2, "absent": 1, "vqa": 1, "dialogue": 1}
    assert (found["boxes"], found["points"], found["labels"]) == (3, 1, 2)
    assert found["most_frequent_labels"] == {"the left mug": 2, "jug": 1}
    assert {place: count for place, count in found["positions"].items() if count} == {
        "top left": 1,
        "bottom right": 1,
        "middle centre": 1,
    }
    spreads = found["distributions"]
    assert spreads["image width (px)"]["mean"] == 360 and spreads["image height (px)"]["max"] == 320
    assert spreads["box width (px)"]["median"] == 100
    assert spreads["box area (% of the image)"] == {
        "min": 6.25,
        "p10": 6.25,
        "median": 6.25,
        "p90": round(float(np.percentile([6.25, 6.25, 25], 90)), 4),
        "max": 25.0,
        "mean": 12.5,
    }
    assert spreads["words a phrase"]["max"] == 3 and spreads["records an image"]["max"] == 3
    assert found["tokens"] == {}


def test_tokens_are_those_that_transformers_counts(tmp_path: Path) -> None:
    path = write(tmp_path)
    tokens = counted(path, "--checkpoint", str(TINY))["tokens"]
    images: Any = cast(Any, AutoImageProcessor).from_pretrained(TINY, backend="pil")
    counts = []
    for name in ("a.png", "b.png"):
        grid = images(images=[Image.open(tmp_path / name)], return_tensors="np")["image_grid_thw"]
        counts.append(int(grid.prod()) // images.merge_size**2)
    assert (tokens["tokens an image"]["min"], tokens["tokens an image"]["max"]) == (min(counts), max(counts))
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a jug"}]},
    ]
    tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(TINY)
    text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
    ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * counts[1]), add_special_tokens=False)["input_ids"]
    alone = Writer(tmp_path)
    alone.add({"image": "b.png", "question": "What is it?", "answer": "a jug"})
    one = counted(alone.write("one.jsonl"), "--checkpoint", str(TINY))["tokens"]
    assert one["tokens a sample"]["mean"] == len(ids)
    assert one["box area (image tokens)"] is None
    # The 160x160 box is a quarter of the square picture, and so of its tokens.
    quarter = tokens["box area (image tokens)"]["max"]
    assert quarter == counts[1] / 4


def test_the_family_and_its_limits_count_image_tokens(tmp_path: Path) -> None:
    path = write(tmp_path)
    limits = ("--family", "qwen3_vl", "--min-pixels", "49152", "--max-pixels", "65536")
    tokens = counted(path, *limits)["tokens"]
    whole = counted(path, "--checkpoint", str(TINY))["tokens"]
    assert tokens == {name: whole[name] for name in ("tokens an image", "box area (image tokens)")}
