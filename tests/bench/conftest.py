"""A small evaluation set about small pictures, not to be changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = [(160, 120), (90, 200), (128, 128)]  # width, height in pixels


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of six records of all kinds on three pictures, one of which is stored on its side (EXIF)."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        coarse = generator.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if number == 1:
            image = image.transpose(Image.Transpose.ROTATE_90)  # orientation 6 turns it back
            exif[0x0112] = 6
        image.save(folder / f"{number}.jpg", quality=95, exif=exif)
    records = [
        {"image": "0.jpg", "text": "the left clock", "bbox": [10, 20, 110, 100]},
        {"image": "1.jpg", "text": "the owl above the door", "bbox": [[5, 5, 60, 60], [10, 100, 80, 190]]},
        {"image": "2.jpg", "text": "the cactus", "bbox": []},
        {"image": "0.jpg", "question": "What colour is the cup?", "answer": "red"},
        {"image": "1.jpg", "question": "What is above the door?", "answer": ["owl", "an owl"]},
        {"image": "2.jpg", "text": "the larger ballet shoes", "bbox": [0, 0, 128, 128]},
    ]
    path = folder / "eval.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def bundle(free_bundle: Path) -> Path:
    """The small Qwen3-VL checkpoint as an fp32 ONNX bundle that answers freely, as the checkpoint does."""
    return free_bundle
