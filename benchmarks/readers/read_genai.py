"""Bundles in onnxruntime-genai: python read_genai.py JOB.json ...

The engine wants a genai_config.json and a graph of token embeddings that takes a picture's features too. Both are
written here, around the bundle's own graphs. It knows no DeepStack, whose features travel as further columns. Prompts
are counted by the engine's own processor; answered are the job's tensors, for it resizes in another way.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
from joined_graphs import EMBEDS, FEATURES, STATES, rename
from onnx import TensorProto, helper, numpy_helper
from reader_job import Answer, answer_jobs, read_array

LONGEST = 1024
LAYOUT = {"qwen3_5": "qwen3_vl"}
"""Families whose pictures the engine lays out under the name of another."""


def answers(job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers from a copy of the bundle."""
    with tempfile.TemporaryDirectory() as place:
        yield from answer(Path(shutil.copytree(job["folder"], Path(place) / "bundle")), job)


def answer(folder: Path, job: dict[str, Any]) -> Iterable[Answer]:
    """Greedy answers from a bundle, whose graphs are rewritten."""
    (features,) = onnx.load(folder / "onnx" / "vision_encoder.onnx", load_external_data=False).graph.output
    columns = features.type.tensor_type.shape.dim[1].dim_value
    place_features(folder / "onnx/embed_tokens.onnx", job["image"], columns)
    write_config(folder, columns, job)
    model = onnxruntime_genai.Model(str(folder))
    write_processor(folder)
    processor = model.create_multimodal_processor()
    for record in job["records"]:
        own = processor(record["prompt"], images=onnxruntime_genai.Images.open(record["picture"]))
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=LONGEST, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        inputs = onnxruntime_genai.NamedTensors()
        inputs["input_ids"] = np.array([record["ids"]], np.int32)
        for name, told in record["arrays"].items():
            inputs[name] = read_array(told)
        inputs["num_image_tokens"] = np.array([record["ids"].count(job["image"])])
        generator.set_inputs(inputs)
        tokens: list[int] = []
        while len(tokens) < job["new_tokens"] and not (tokens and tokens[-1] in job["stop"]):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        yield own["input_ids"].as_numpy().size, tokens


def place_features(path: Path, image: int, columns: int) -> None:
    """Make the graph of token embeddings put a picture's features in the places of its tokens.

    A model may answer with such a token too, when no features are given.
    """
    table = onnx.load(path, load_external_data=False)
    rename(table.graph, EMBEDS, "text")
    for name, value in {"image": np.asarray(image), "first": np.array([0])}.items():
        table.graph.initializer.append(numpy_helper.from_array(value, name))
    table.graph.input.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["tokens", columns]))
    table.graph.node.extend(
        [
            helper.make_node("Equal", ["input_ids", "image"], ["is_image"]),
            helper.make_node("NonZero", ["is_image"], ["places_across"]),
            helper.make_node("Transpose", ["places_across"], ["all_places"]),
            helper.make_node("Shape", [FEATURES], ["count"], start=0, end=1),
            helper.make_node("Slice", ["all_places", "first", "count", "first"], ["places"]),
            helper.make_node("ScatterND", ["text", "places", FEATURES], [EMBEDS]),
        ]
    )
    onnx.save(table, path)


def write_config(folder: Path, columns: int, job: dict[str, Any]) -> None:
    """Describe the joined graphs in the engine's own words."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text, vision = config["text_config"], config["vision_config"]
    states = STATES.values() if "layer_types" in text else ()  # where some layers have others than keys and values
    decoder = {
        "session_options": {"provider_options": []},
        "filename": "onnx/decoder_model_merged.onnx",
        "head_size": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        "hidden_size": columns,
        **{name: text[name] for name in ("num_attention_heads", "num_hidden_layers", "num_key_value_heads")},
        "inputs": {
            **{name: name for name in (EMBEDS, "attention_mask", "position_ids")},
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
            **{f"past_{state}_names": f"past_{state}.%d" for state in states},
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
            **{f"present_{state}_names": f"present_{state}.%d" for state in states},
        },
    }
    ids = {name: config[name] for name in ("video_token_id", "vision_start_token_id") if name in config}
    model = {
        "type": config["model_type"],
        "bos_token_id": 0,
        "eos_token_id": job["stop"],  # after one of them it gives nothing but padding
        "pad_token_id": 0,
        "context_length": LONGEST,
        "vocab_size": text["vocab_size"],
        "image_token_id": job["image"],
        **ids,
        "decoder": decoder,
        "embedding": {
            "filename": "onnx/embed_tokens.onnx",
            "inputs": {name: name for name in ("input_ids", FEATURES)},
            "outputs": {EMBEDS: EMBEDS},
        },
        "vision": {
            "filename": "onnx/vision_encoder.onnx",
            "config_filename": "processor_config.json",
            **{
                name: vision[name] for name in ("spatial_merge_size", "patch_size") if isinstance(vision.get(name), int)
            },
            "inputs": {name: name for name in ("pixel_values", "image_grid_thw")},
            "outputs": {FEATURES: FEATURES},
        },
    }
    search = {"do_sample": False, "max_length": LONGEST, "past_present_share_buffer": False}
    (folder / "genai_config.json").write_text(
        json.dumps({"model": model, "search": search}, indent=1), encoding="utf-8"
    )


def write_processor(folder: Path) -> None:
    """Say the checkpoint's preprocessing in the words of the engine's processor."""
    config = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    layout: dict[str, Any] = {}
    last: dict[str, dict[str, Any]] = {"Permute3D": {"dims": [2, 0, 1]}}
    if family == "lfm2_vl":  # whose patches the engine cuts itself
        sizes = {"patch_size": config["encoder_patch_size"], "merge_size": config["downsample_factor"]}
        token = (sizes["patch_size"] * sizes["merge_size"]) ** 2
        limits = {f"{end}_pixels": config[f"{end}_image_tokens"] * token for end in ("min", "max")}
    else:
        size = config.get("size") or {}
        sizes = {name: config[name] for name in ("patch_size", "merge_size")}
        limits = {
            "min_pixels": config.get("min_pixels") or size["shortest_edge"],
            "max_pixels": config.get("max_pixels") or size["longest_edge"],
        }
        layout = {LAYOUT.get(family, family): 1}
        last = {"PatchImage": {**sizes, "temporal_patch_size": config["temporal_patch_size"]}}
    steps: dict[str, dict[str, Any]] = {
        "DecodeImage": {"color_space": "RGB"},
        "ConvertRGB": {},
        "Resize": {"width": 540, "height": 360, "smart_resize": 1, **limits, **sizes},
        "Rescale": {"rescale_factor": 1 / 255},
        "Normalize": {"mean": config["image_mean"], "std": config["image_std"], **layout},
        **last,
    }
    transforms = [{"operation": {"name": kind, "type": kind, "attrs": given}} for kind, given in steps.items()]
    whole = {"processor": {"name": f"{family}_image_processor", "transforms": transforms}}
    (folder / "processor_config.json").write_text(json.dumps(whole), encoding="utf-8")


if __name__ == "__main__":
    answer_jobs(answers, "onnxruntime-genai", "onnxruntime")
