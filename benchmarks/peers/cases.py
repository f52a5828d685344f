"""What is quantized and with which samples: checkpoints, calibration and held-out records as tensors on disk.

    WORK/cases/NAME-SEED/checkpoint          a Hugging Face checkpoint, float32
    WORK/cases/NAME-SEED/data/{train,test}.jsonl, data/images   the records
    WORK/cases/NAME-SEED/{calibration,held_out}.pt              the same records as the tensors that the model takes

Three models: small Qwen2.5-VL and Qwen3-VL with random weights, one checkpoint a seed, and the trained tiny model of
`examples/tiny`, one draw of calibration records a seed. The tensors are made once, so that every library sees the same.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "examples" / "tiny"
MODELS = ("qwen2_5_vl", "qwen3_vl", "tiny")
CALIBRATION = 64
"""Records to calibrate with."""
HELD_OUT = {"qwen2_5_vl": 48, "qwen3_vl": 48, "tiny": 128}
"""Records to measure on; none shares a photograph or a seed with the calibration's."""


def case_folders(work: Path) -> list[Path]:
    """The prepared cases, in order."""
    return sorted(path for path in (work / "cases").iterdir() if (path / "held_out.pt").is_file())


def seed_of(folder: Path) -> int:
    """The seed of a case."""
    return int(folder.name.rpartition("-")[2])


def prepare(work: Path, seeds: int) -> None:
    """Make every case that is not there yet."""
    for model in MODELS:
        for seed in range(seeds):
            folder = work / "cases" / f"{model}-{seed}"
            if not (folder / "held_out.pt").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                _prepare(folder, model, seed)
                print(f"prepared {folder.name}", flush=True)


def _prepare(folder: Path, model: str, seed: int) -> None:
    import torch

    sys.path.insert(0, str(REPOSITORY / "tests"))
    from builders import build_qwen2_5_vl, build_qwen3_vl  # type: ignore[import-not-found, unused-ignore]

    checkpoint = folder / "checkpoint"
    folder.mkdir(parents=True)
    if model == "tiny":
        shutil.copytree(TINY / "model", checkpoint)
    else:
        build = {"qwen2_5_vl": build_qwen2_5_vl, "qwen3_vl": build_qwen3_vl}[model]
        # Twice the tests' width: rows of 256 and 512, so that blocks of 128 are blocks.
        build(checkpoint, seed, layers=4, hidden=256, heads=4, kv_heads=2)
    data = folder / "data"
    counts = {"--train": CALIBRATION, "--test": HELD_OUT[model], "--seed": 1000 + seed}
    arguments = [str(word) for pair in counts.items() for word in pair]
    subprocess.run([sys.executable, TINY / "make_data.py", "--output", data, *arguments], check=True)
    torch.save(tensors(checkpoint, data / "train.jsonl"), folder / "calibration.pt")
    torch.save(tensors(checkpoint, data / "test.jsonl"), folder / "held_out.pt")


def tensors(checkpoint: Path, records: Path) -> list[dict[str, Any]]:
    """The records as keyword arguments of the model's forward, one image and one sequence (prompt, answer, end) each.

    `answer_start` is the position of the answer's first token.
    """
    import torch
    from PIL import Image

    from edgetune_runtime.codec import grounding
    from edgetune_runtime.families import get_family
    from edgetune_runtime.images.smart import ImageSpec, preprocess
    from edgetune_runtime.records import read_records
    from edgetune_runtime.tokens import TextTokenizer

    family = get_family(json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["model_type"])
    spec, tokenizer = ImageSpec.from_checkpoint(checkpoint), TextTokenizer(checkpoint / "tokenizer.json")
    image_token = tokenizer.encode(family.chat.image_token)[0]
    samples = []
    for record in read_records(records):
        pixels = preprocess(Image.open(record.image), spec)
        prompt = tokenizer.prompt(
            family.chat, record.prompt(family), image_tokens=pixels.image_tokens, image_token=image_token
        ).tolist()
        if record.boxes is None:
            answer = str(record.answer)
        else:
            answer = grounding.encode(record.boxes, record.labels, pixels.geometry, family.box_format)
        ids = torch.tensor([[*prompt, *tokenizer.encode(answer), *tokenizer.encode(family.chat.end)]])
        samples.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "mm_token_type_ids": (ids == image_token).int(),
                "pixel_values": torch.from_numpy(pixels.pixel_values),
                "image_grid_thw": torch.from_numpy(pixels.grid_thw),
                "answer_start": len(prompt),
            }
        )
    return samples
