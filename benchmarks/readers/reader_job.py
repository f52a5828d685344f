"""What a reader is asked and how it answers: imported by the readers, each in an environment of its own.

A job is a JSON file:

    folder      the bundle
    format      of the bundle
    dtype       "float32" or "float16"
    new_tokens  most tokens of an answer
    stop        ids that end one
    pad         an id that fills up
    image       id of an image token
    typed       whether the model is told which tokens are image tokens
    records     a list of {"prompt": text with one image token, "ids": prompt with all of its image tokens,
                "picture": file, "arrays": {name of an input of the model's: {"file", "dtype", "shape"}}}

A reader is given several jobs, for an engine is slow to import. It prints lines of JSON: its "versions"; for each job
{"job": file}; then for each record, in order, {"prompt_tokens": what its own processor makes of the prompt and the
picture, "tokens": [ids of the answer]}, or {"error": text} where it stops. Imports nothing of
ours but the tests' own way to put transformers' processors together.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Answer = tuple[int, list[int]]
"""How many tokens the reader made of the prompt, and the answer's."""


def answer_jobs(answers: Callable[[dict[str, Any]], Iterable[Answer]], *packages: str) -> None:
    """Print what an engine made of these packages answers to the jobs that the command line names."""
    print(json.dumps({"versions": {name: version(name) for name in packages}}), flush=True)
    for path in sys.argv[1:]:
        print(json.dumps({"job": path}), flush=True)
        try:
            for count, tokens in answers(json.loads(Path(path).read_text(encoding="utf-8"))):
                print(json.dumps({"prompt_tokens": count, "tokens": tokens}), flush=True)
        except Exception as error:  # whatever an engine raises is its answer
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


def read_array(told: dict[str, Any]) -> npt.NDArray[Any]:
    """An array of a record's."""
    return np.fromfile(told["file"], told["dtype"]).reshape(told["shape"])


def import_gptqmodel() -> Any:
    """GPTQModel, whose plain kernels keep the weights that they dequantized, which is most of their time."""
    os.environ["GPTQ_TORCH_CACHE_WEIGHTS"] = "1"
    sys.path.append(str(Path(__file__).resolve().parents[1] / "peers"))
    from with_gptqmodel import import_library

    library = import_library()
    import gptqmodel.nn_modules.qlinear.torch_awq as awq  # type: ignore[import-not-found, unused-ignore]

    if not hasattr(awq.dequantize_gemm, "cache_info"):
        awq.dequantize_gemm = cache(awq.dequantize_gemm)
    return library


def answer_with_torch(model: Any, job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers of a model of transformers, to what its processor makes of each record."""
    import torch
    from PIL import Image

    sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
    from families.reference import load_processor

    processor = load_processor(Path(job["folder"]))
    for record in job["records"]:
        with Image.open(record["picture"]) as picture:
            made = processor(text=[record["prompt"]], images=[picture.convert("RGB")], return_tensors="pt")
        with torch.no_grad():
            found = model.generate(
                **made,
                do_sample=False,
                max_new_tokens=job["new_tokens"],
                eos_token_id=job["stop"],
                pad_token_id=job["pad"],
            )
        length = made["input_ids"].shape[1]
        yield length, found[0, length:].tolist()
