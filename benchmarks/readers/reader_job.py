"""What a reader is asked and how it answers: imported by the readers, each in an environment of its own.

A job is a JSON file:

    folder      the bundle
    format      of the bundle
    dtype       "float32" or "float16"
    new_tokens  most tokens of an answer
    stop        ids that end one
    pad         an id that fills up
    image       id of an image token
    records     a list of {"prompt": text with one image token, "ids": prompt with all of its image tokens,
                "picture": file, "pixels": float32 file, "shape": of it, "grid": [[1, rows, columns]]}; of records
                without a picture only "ids" is there

A reader prints a line of JSON for each record, in order: {"prompt_tokens": N, "tokens": [ids of the answer]}. Imports
nothing of ours.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Answer = tuple[int, list[int]]
"""How many tokens the reader made of the prompt, and the answer's."""


def read_job() -> dict[str, Any]:
    """The job that the command line names."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job


def tell(answers: Iterable[Answer]) -> None:
    """Print answers as they come."""
    for count, tokens in answers:
        print(json.dumps({"prompt_tokens": count, "tokens": tokens}), flush=True)


def answer_with_torch(model: Any, job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers of a model of transformers, to prompts and pictures as tensors."""
    import numpy as np
    import torch

    for record in job["records"]:
        ids = torch.tensor([record["ids"]])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "pixels" in record:
            pixels = torch.from_numpy(np.fromfile(record["pixels"], np.float32).reshape(record["shape"]))
            inputs |= {"pixel_values": pixels, "image_grid_thw": torch.tensor(record["grid"])}
            inputs["mm_token_type_ids"] = (ids == job["image"]).int()
        with torch.no_grad():
            found = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=job["new_tokens"],
                eos_token_id=job["stop"],
                pad_token_id=job["pad"],
            )
        yield ids.shape[1], found[0, ids.shape[1] :].tolist()
