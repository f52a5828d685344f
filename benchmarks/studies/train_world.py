"""A mixed training set and random checkpoints, for the measurements of training: made-up pictures, real shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "model"
SHAPES: dict[str, dict[str, Any]] = {
    # The sizes of the published Qwen3-VL-2B configuration, and some that a test affords.
    "2b": {
        "text": {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
        "vision": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16},
        "deepstack": [5, 11, 17],
        "mrope": [24, 20, 20],
    },
    "small": {
        "text": {
            "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 8192,
        },
        "vision": {"depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4},
        "deepstack": [0, 1, 2],
        "mrope": [8, 4, 4],
    },
}  # fmt: skip


def write_records(folder: Path, count: int, *, sides: tuple[int, int], seed: int = 0) -> Path:
    """Write pictures and records as people mix them: one box, several, short and long answers, a talk, text alone.

    Args:
        folder: a new folder.
        count: how many records, each with a picture of its own or none.
        sides: the shortest and the longest side of a picture in pixels; in between, all ratios are as frequent.
        seed: of everything.

    Returns:
        The JSONL file.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        low, high = np.log(sides)
        width, height = np.exp(generator.uniform(low, high, 2)).astype(int).tolist()
        coarse = generator.integers(0, 255, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
        name = f"{number}.png"
        Image.fromarray(coarse).resize((width, height)).save(folder / name)
        lines.append(json.dumps(_record(number % 6, name, width, height)))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _record(kind: int, image: str, width: int, height: int) -> dict[str, Any]:
    boxes = [[width * k // 8, height * k // 8, width * (k + 3) // 8, height * (k + 3) // 8] for k in range(5)]
    story = "The picture was made of noise, so there is little to be told about it. " * 6
    if kind == 0:
        return {"image": image, "text": "the brightest patch", "bbox": boxes[0]}
    if kind == 1:
        return {"image": image, "text": "every patch", "bbox": boxes}
    if kind == 2:
        return {"image": image, "question": "What colour is the middle?", "answer": "grey"}
    if kind == 3:
        return {"image": image, "question": "Describe the picture.", "answer": story.strip()}
    turns = [("user", "Which colour is on the left?"), ("assistant", "Red."), ("user", "And then?")]
    said = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "Blue, mostly.")]]
    if kind == 5:
        return {"images": [], "messages": said}
    said[0]["content"] = "<image>" + str(said[0]["content"])
    return {"images": [image], "messages": said}


def tiny_checkpoint(folder: Path, *, longest_edge: int) -> Path:
    """Copy the tiny example model with another limit of pixels, so that its pictures differ in tokens."""
    shutil.copytree(TINY, folder)
    _limit_pixels(folder, longest_edge)
    return folder


def random_checkpoint(folder: Path, shape: str, *, dtype: torch.dtype, device: str, longest_edge: int) -> Path:
    """Write a Qwen3-VL checkpoint of random weights, with the tiny model's tokenizer.

    Args:
        folder: a new folder.
        shape: one of `SHAPES`.
        dtype: of the weights.
        device: where they are drawn.
        longest_edge: most pixels of a picture.
    """
    sizes, tiny = SHAPES[shape], json.loads((TINY / "config.json").read_text())
    text = sizes["text"] | {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": sizes["mrope"], "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
    }  # fmt: skip
    vision = sizes["vision"] | {
        "out_hidden_size": text["hidden_size"],
        "deepstack_visual_indexes": sizes["deepstack"],
    }
    ids = {key: value for key, value in tiny.items() if key.endswith("_token_id")}
    config: Any = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    for path in TINY.iterdir():
        if path.name.startswith(("tokenizer", "preprocessor", "chat_template")):
            shutil.copyfile(path, folder / path.name)
    _limit_pixels(folder, longest_edge)
    return folder


def _limit_pixels(folder: Path, longest_edge: int) -> None:
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config["size"] = {"shortest_edge": 64 * 64, "longest_edge": longest_edge}
    path.write_text(json.dumps(config, indent=2))
