"""What readers are given and what they have to say: bundles of two families, 24 records, and the reference's answers.

    WORK/FAMILY/checkpoint, records/, SET/weights, SET/FORMAT, SET/reference.json

Qwen3-VL is the trained tiny model, Qwen2.5-VL one with random weights. Weight sets are rounded to nearest, for a
reader's task is the same with any codes. The reference is transformers with the dequantized weights.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joined_graphs import join
from PIL import Image
from transformers import AutoModelForImageTextToText

import edgetune
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_runtime.images.smart import ImageSpec, preprocess
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.records import read_records
from edgetune_runtime.tokens import TextTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "examples" / "tiny"
sys.path.append(str(REPOSITORY / "tests"))
from builders import build_qwen2_5_vl  # noqa: E402
from families.checkpoints import build_qwen2_vl  # noqa: E402
from weight_sets import build_weight_set  # noqa: E402

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
RECORDS, NEW_TOKENS = 24, 24
ODD = ((97, 131), (61, 333), (400, 75), (129, 127), (255, 257), (33, 290), (512, 95), (181, 181), (70, 71))
"""Sizes of the last records' pictures, none a multiple of a patch."""

_G32, _G128 = (BlockFormat(4, block, symmetric=True) for block in (32, 128))
SETS: dict[str, Callable[[str], BlockFormat | None]] = {
    "g128": lambda name: None if name == HEAD else BlockFormat(4, 128, symmetric=False),
    "g32 symmetric": lambda name: None if name == HEAD else _G32,
    "g32 and g128": lambda name: None if name == HEAD else (_G128 if "down_proj" in name else _G32),
    "3 bits": lambda name: None if name == HEAD else BlockFormat(3, 128, symmetric=True),
    "8 bits": lambda name: None if name == HEAD else BlockFormat(8, 128, symmetric=True),
    "quantized head": lambda name: _G128,
}
"""Formats of the weight sets' layers; the first is what `edgetune calibrate` makes, all others have no zero points."""
UNWRITTEN = (
    *(("awq", name) for name in ("g32 and g128", "3 bits", "8 bits", "quantized head")),
    ("compressed-tensors", "3 bits"),
)
"""Formats and weight sets that export refuses."""


def checkpoint(work: Path, family: str) -> Path:
    """A family's checkpoint, made once."""
    folder = work / family / "checkpoint"
    if not folder.is_dir():
        if family == "qwen3_vl":
            shutil.copytree(TINY / "model", folder)
        elif family == "qwen2_vl":
            build_qwen2_vl(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=2048)
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
            model.save_pretrained(folder)
        else:  # in 16 bits, as published ones are: what is not quantized is the same in every reader
            sizes: dict[str, Any] = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "vocabulary": 2048}
            build_qwen2_5_vl(folder, **sizes, dtype=torch.bfloat16)
    return folder


def weight_set(work: Path, family: str, name: str) -> Path:
    """A weight set of the checkpoint, made once."""
    folder = work / family / name.replace(" ", "-") / "weights"
    if not folder.is_dir():
        build_weight_set(checkpoint(work, family), folder, choose=SETS[name], head=SETS[name](HEAD))
    return folder


def bundle(work: Path, family: str, name: str, format_: str, names: str = "hub") -> Path:
    """A bundle, made or kept; of format "onnx" one that rounds nothing but the decoder's weights.

    Its self-check is left out, for it is checked by its readers.

    Raises:
        InputError: export refuses to write it.
    """
    weights = weight_set(work, family, name)
    folder = weights.with_name(format_ if names == "hub" else f"{format_}-{names}")
    options: dict[str, Any] = {"purposes": ("server",), "names": names}
    if format_ == "onnx":
        options = {"accuracy_level": 0, "head_precision": "fp32", "vision_precision": "fp32"}
    options |= {"checkpoint": checkpoint(work, family), "weights": weights, "output": folder}
    return edgetune.export(**options, format=format_, check="none").folder


def joined(bundle: Path) -> Path:
    """A copy of an ONNX bundle whose graphs are joined, see joined_graphs.py."""
    folder = bundle.with_name(f"{bundle.name}-joined")
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    join(folder / "onnx")
    return folder


@cache
def job(work: Path, family: str) -> dict[str, Any]:
    """The records of a job and what is the same for every bundle of a family, see reader_job.py."""
    source = HubCheckpoint.open(checkpoint(work, family))
    tokenizer = TextTokenizer(source.folder / "tokenizer.json")
    chat, folder = source.family.chat, work / family / "records"
    (image,), (pad,) = tokenizer.encode(chat.image_token), tokenizer.encode(source.family.special_tokens["pad"])
    if not (folder / "test.jsonl").is_file():
        counts = ["--test", str(RECORDS), "--seed", "12"]
        subprocess.run([sys.executable, TINY / "make_data.py", "--output", folder, *counts], check=True)
    records: list[dict[str, Any]] = []
    spec = source.spec
    assert isinstance(spec, ImageSpec)
    for number, record in enumerate(read_records(folder / "test.jsonl")):
        text = record.prompt(source.family)
        picture = Image.open(record.image).convert("RGB")
        if number >= RECORDS - len(ODD):
            picture = picture.resize(ODD[number - RECORDS + len(ODD)])
        stem = folder / f"{number:02}"
        picture.save(stem.with_suffix(".png"))
        pixels = preprocess(picture, spec)
        np.ascontiguousarray(pixels.pixel_values, np.float32).tofile(stem.with_suffix(".f32"))
        ids = tokenizer.prompt(chat, text, image_tokens=pixels.image_tokens, image_token=image)
        one = f"{chat.prefix}{chat.before_image}{chat.image_token}{chat.after_image}{text}{chat.last_suffix}"
        records.append(
            {
                "prompt": one,
                "ids": ids.tolist(),
                "picture": str(stem.with_suffix(".png")),
                "pixels": str(stem.with_suffix(".f32")),
                "shape": list(pixels.pixel_values.shape),
                "grid": pixels.grid_thw.tolist(),
            }
        )
    stop = [tokenizer.encode(token)[0] for token in source.family.stop_tokens]
    return {
        "new_tokens": NEW_TOKENS,
        "stop": stop,
        "pad": pad,
        "image": image,
        "image_token": chat.image_token,
        "records": records,
    }


def reference(work: Path, family: str, name: str, dtype: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The dequantized model's answers, made once: "tokens", and at each the "gaps" of the two largest logits.

    An "onnx" bundle's table of token embeddings is int8, and takes the model's place too.
    """
    weights = weight_set(work, family, name)
    table = "-table" if asked["format"] == "onnx" else ""
    path = weights.with_name(f"reference-{dtype}{table}.json")
    if path.is_file():
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint(work, family), dtype=torch.float32)
    dequantized = WeightSet.load(weights)
    with torch.no_grad():
        for name in dequantized.names:
            layer = model.get_submodule(name)  # a head of its own where it shared the token table's weight
            layer.weight = torch.nn.Parameter(torch.from_numpy(dequantized.dequantized(name)))
        for name in dequantized.overrides:
            model.get_parameter(name).copy_(torch.from_numpy(dequantized.override(name)))
    if table:
        _replace_table(model, Path(asked["folder"]) / "onnx" / "embed_tokens.onnx")
    model.eval().to(getattr(torch, dtype))
    found = [_answer(model, asked, record) for record in asked["records"]]
    path.write_text(json.dumps(found), encoding="utf-8")
    return found


def _replace_table(model: Any, graph: Path) -> None:
    """Give the model a bundle's token embeddings; a head that was tied to its own keeps those."""
    import onnxruntime

    own = model.get_input_embeddings()
    model.get_output_embeddings().weight = torch.nn.Parameter(model.get_output_embeddings().weight.clone())
    ids = np.arange(own.num_embeddings)[None]
    (table,) = onnxruntime.InferenceSession(str(graph)).run(None, {"input_ids": ids})
    own.weight = torch.nn.Parameter(
        torch.from_numpy(table[0, :, : own.embedding_dim].copy())
    )  # joined graphs have more


@torch.no_grad()
def _answer(model: Any, asked: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    ids = torch.tensor([record["ids"]])
    pixels = torch.from_numpy(np.fromfile(record["pixels"], np.float32).reshape(record["shape"]))
    told = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == asked["image"]).int(),
        pixel_values=pixels.to(model.dtype),
        image_grid_thw=torch.tensor(record["grid"]),
        do_sample=False,
        max_new_tokens=asked["new_tokens"],
        eos_token_id=asked["stop"],
        pad_token_id=asked["pad"],
        output_logits=True,
        return_dict_in_generate=True,
    )
    gaps = [float(row[0].float().topk(2).values.diff().abs()) for row in told.logits]
    return {"tokens": told.sequences[0, ids.shape[1] :].tolist(), "gaps": gaps}
