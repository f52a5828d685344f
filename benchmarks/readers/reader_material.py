"""What readers are given and what they have to say: bundles of models, 24 records, and the reference's answers.

    WORK/records/, MODEL/checkpoint, records/, SET/weights, SET/FORMAT, SET/reference.json

Qwen3-VL is the trained tiny model, all others have random weights. Weight sets are rounded to nearest, for a reader's
task is the same with any codes. The reference is transformers with the dequantized weights.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from joined_graphs import join
from reader_job import read_array
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import edgetune
from edgetune_core.checkpoint import HubCheckpoint
from edgetune_core.weightset import HEAD, WeightSet
from edgetune_runtime.codec import grammar
from edgetune_runtime.images.load import load_image
from edgetune_runtime.quant.blocks import BlockFormat
from edgetune_runtime.records import read_records

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "examples" / "tiny"
sys.path.append(str(REPOSITORY / "tests"))
from builders import build_qwen2_5_vl  # noqa: E402
from families.checkpoints import (  # noqa: E402
    BUILDERS,
    build_internvl,
    build_lfm2_vl,
    build_llava,
    build_qwen2_vl,
    build_qwen3_5,
)
from weight_sets import build_weight_set  # noqa: E402

_SIZES: dict[str, Any] = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "vocabulary": 2048}
_SIZES_2: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 2048}
_DELTA_NET: dict[str, Any] = {"linear_num_value_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
"""Published sizes of linear attention: vLLM has no kernels for the tiny ones on a CPU."""


def _lfm2_vl(folder: Path) -> None:
    """As published ones, which vLLM takes for granted: a head that is the token table, and widths by two more names."""
    build_lfm2_vl(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    text |= dict.fromkeys(("block_dim", "conv_dim"), text["hidden_size"])
    text["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


MODELS: dict[str, Callable[[Path], object]] = {
    "qwen3_vl": partial(shutil.copytree, TINY / "model"),
    **BUILDERS,
    "qwen2_5_vl": partial(build_qwen2_5_vl, **_SIZES),
    "qwen2_vl": partial(build_qwen2_vl, **_SIZES_2),
    "qwen3_5": partial(build_qwen3_5, **_DELTA_NET),
    "internvl3_5": partial(build_internvl, text="qwen3"),
    "lfm2_vl": _lfm2_vl,
    "llava": partial(build_llava, pads=True),  # what readers' own processors do with a published one is another picture
}
"""What writes each checkpoint, by the name of its family or, where a family has two kinds, one of its own."""
BEGUN = ("lfm2_vl",)
"""Whose processor adds no token that begins a prompt: the chat template writes it."""
ASKED = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
"""Whose bundles are asked about where nobody says which."""
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


@cache
def checkpoint(work: Path, model: str) -> HubCheckpoint:
    """A model's checkpoint, made once."""
    folder = work / model / "checkpoint"
    if not folder.is_dir():
        MODELS[model](folder)
        source = HubCheckpoint.open(folder)
        if source.dtype == "float32":  # in 16 bits, as published ones are: what is not quantized is the same everywhere
            source.load_model(torch.bfloat16).save_pretrained(folder)
    return HubCheckpoint.open(folder)


def weight_set(work: Path, model: str, name: str) -> Path:
    """A weight set of the checkpoint, made once."""
    folder = work / model / name.replace(" ", "-") / "weights"
    if not folder.is_dir():
        build_weight_set(checkpoint(work, model).folder, folder, choose=SETS[name], head=SETS[name](HEAD))
    return folder


def bundle(work: Path, model: str, name: str, format_: str, names: str = "hub") -> Path:
    """A bundle, made or kept; of format "onnx" one that rounds nothing but the decoder's weights.

    Its self-check is left out, for it is checked by its readers.

    Raises:
        InputError: export refuses to write it.
    """
    weights = weight_set(work, model, name)
    folder = weights.with_name(format_ if names == "hub" else f"{format_}-{names}")
    options: dict[str, Any] = {"purposes": ("server",), "names": names}
    if format_ == "onnx":
        options = {"accuracy_level": 0, "head_precision": "fp32", "vision_precision": "fp32"}
    options |= {"checkpoint": checkpoint(work, model).folder, "weights": weights, "output": folder}
    return edgetune.export(**options, format=format_, check="none").folder


def joined(bundle: Path) -> Path:
    """A copy of an ONNX bundle whose graphs are joined, see joined_graphs.py."""
    folder = bundle.with_name(f"{bundle.name}-joined")
    shutil.copytree(bundle, folder, dirs_exist_ok=True)
    join(folder)
    return folder


@cache
def job(work: Path, model: str, count: int) -> dict[str, Any]:
    """So many records and what is the same for every bundle of a model, see reader_job.py."""
    source = checkpoint(work, model)
    tokenizer, spec = source.tokenizer, source.spec
    allowed = grammar.tags(source.family.box_format.style)
    chat, data, folder = source.family.chat, work / "records", work / model / "records"
    folder.mkdir(exist_ok=True)
    begin = "".join(Tokenizer.from_file(str(source.folder / "tokenizer.json")).encode("").tokens)  # readers add it
    begin = "" if model in BEGUN else begin
    (image,), (pad,) = tokenizer.encode(chat.image_token), tokenizer.encode(source.family.special_tokens["pad"])
    if not (data / "test.jsonl").is_file():
        counts = ["--test", str(RECORDS), "--seed", "12"]
        subprocess.run([sys.executable, TINY / "make_data.py", "--output", data, *counts], check=True)
    records: list[dict[str, Any]] = []
    for number, record in enumerate(read_records(data / "test.jsonl")):
        text = record.prompt(source.family)
        picture = load_image(record.image)
        if number >= RECORDS - len(ODD):
            picture = picture.resize(ODD[number - RECORDS + len(ODD)])
        stem = folder / f"{number:02}"
        picture.save(stem.with_suffix(".png"))
        pieces = spec.plan(*picture.size).pieces
        ids = tokenizer.prompt(chat, text, image_tokens=pieces, image_token=image, allowed=allowed)
        one = f"{chat.prefix}{chat.before_image}{chat.image_token}{chat.after_image}{text}{chat.last_suffix}"
        one = one.removeprefix(begin)
        records.append(
            {
                "prompt": one,
                "ids": ids.tolist(),
                "picture": str(stem.with_suffix(".png")),
                "arrays": {
                    name: _stored(array, stem.with_suffix(f".{name}"))
                    for name, array in spec.join([spec.arrays(picture)]).items()
                },
            }
        )
    stop = [tokenizer.encode(token)[0] for token in source.family.stop_tokens]
    return {
        "new_tokens": NEW_TOKENS,
        "stop": stop,
        "pad": pad,
        "image": image,
        "typed": spec.typed_tokens,
        "records": records[RECORDS // count - 1 :: RECORDS // count],
    }


def _stored(array: npt.NDArray[Any], path: Path) -> dict[str, Any]:
    """Write the values of an array of the model's; returns what a job says of it."""
    array.tofile(path)
    return {"file": str(path), "dtype": array.dtype.name, "shape": list(array.shape)}


def reference(work: Path, model: str, name: str, dtype: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The dequantized model's answers, made once: "tokens", and at each the "gaps" of the two largest logits.

    An "onnx" bundle's table of token embeddings is int8, and takes the model's place too.
    """
    weights = weight_set(work, model, name)
    table = "-table" if asked["format"] == "onnx" else ""
    path = weights.with_name(f"reference-{dtype}{table}-{len(asked['records'])}.json")
    if path.is_file():
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return found
    whole = checkpoint(work, model).load_model(torch.float32)
    dequantized = WeightSet.load(weights)
    with torch.no_grad():
        for name in dequantized.names:
            layer = whole.get_submodule(name)  # a head of its own where it shared the token table's weight
            layer.weight = torch.nn.Parameter(torch.from_numpy(dequantized.dequantized(name)))
        for name in dequantized.overrides:
            whole.get_parameter(name).copy_(torch.from_numpy(dequantized.override(name)))
    if table:
        _replace_table(whole, Path(asked["folder"]) / "onnx" / "embed_tokens.onnx")
    whole.eval().to(getattr(torch, dtype))
    found = [_answer(whole, asked, record) for record in asked["records"]]
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
    arrays = {name: torch.from_numpy(read_array(told)) for name, told in record["arrays"].items()}
    typed = {"mm_token_type_ids": (ids == asked["image"]).int()} if asked["typed"] else {}
    told = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **typed,
        **{name: array.to(model.dtype) if array.is_floating_point() else array for name, array in arrays.items()},
        do_sample=False,
        max_new_tokens=asked["new_tokens"],
        eos_token_id=asked["stop"],
        pad_token_id=asked["pad"],
        output_logits=True,
        return_dict_in_generate=True,
    )
    gaps = [float(row[0].float().topk(2).values.diff().abs()) for row in told.logits]
    return {"tokens": told.sequences[0, ids.shape[1] :].tolist(), "gaps": gaps}
