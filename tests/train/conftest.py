"""Records about small pictures of several sizes; made once per test process, not to be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZES = [(160, 120), (90, 200), (128, 128)]  # width, height in pixels
RECORDS: list[dict[str, Any]] = [
    {"image": "0.png", "text": "the left clock", "bbox": [10, 20, 110, 100]},
    {"image": "1.png", "text": "the owl above the door", "bbox": [[5, 5, 60, 60], [10, 100, 80, 190]]},
    {"image": "2.png", "text": "the cactus", "bbox": []},
    {"image": "0.png", "question": "What colour is the cup?", "answer": "red"},
    {
        "image": "2.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is on the table?"},
            {"from": "gpt", "value": "A cup."},
        ],
    },
    {
        "images": ["1.png"],
        "messages": [
            {"role": "user", "content": "<image>Where are the <ref-object>?"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "objects": {"ref": ["shoes"], "bbox": [[12, 34, 56, 178]]},
    },
]


def write_records(folder: Path, seed: int = 0, records: list[dict[str, Any]] = RECORDS) -> Path:
    """Write three pictures and a JSONL file about them into a new folder; return the file."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number, (width, height) in enumerate(SIZES):
        coarse = generator.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{number}.png")
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of six records, one of each form and an absent object."""
    return write_records(tmp_path_factory.mktemp("records") / "train")


@pytest.fixture(scope="session")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same records about other pictures."""
    return write_records(tmp_path_factory.mktemp("records") / "val", seed=1)
