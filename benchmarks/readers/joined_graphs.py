"""A bundle's graphs with the inputs that other engines feed, who know neither DeepStack nor our runtime's own.

    features of a picture [tokens, H · (1 + D)]; embeddings [B, S, H · (1 + D)], with zeros for tokens of text

DeepStack's features become further columns of the embeddings: what such an engine puts among the embeddings carries
them along, and the decoder cuts them apart again. Positions of families that count tokens in one row have two axes,
tiles stand by picture, and a layer's state has the name that transformers.js gives it. Weights are not touched.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EMBEDS, FEATURES = "inputs_embeds", "image_features"
TILED = ("smolvlm", "idefics3")
"""Families whose engines give a picture's tiles an axis of their own."""
STATES = {"conv": "conv", "state": "recurrent"}
"""Our names of a layer's states, and transformers.js'."""


def join(folder: Path) -> int:
    """Rewrite the three graphs of a bundle; returns the columns of an embedding, which are H where there is no D."""
    family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    columns = join_features(folder / "onnx")
    if family in TILED:
        path = folder / "onnx" / "vision_encoder.onnx"
        vision = onnx.load(path, load_external_data=False)
        tiles_by_picture(vision.graph)
        onnx.save(vision, path)
    path = folder / "onnx" / "decoder_model_merged.onnx"
    decoder = onnx.load(path, load_external_data=False)
    name_states(decoder.graph)
    if not family.startswith("qwen"):
        count_in_one_row(decoder.graph)
    onnx.save(decoder, path)
    return columns


def join_features(folder: Path) -> int:
    """Make DeepStack's features columns of the embeddings; returns how many columns those have."""
    vision, table, decoder = (
        onnx.load(folder / f"{name}.onnx", load_external_data=False)
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    )
    parts = [value.name for value in vision.graph.output]
    hidden: int = vision.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    columns = hidden * len(parts)
    if len(parts) == 1:
        return columns

    rename(vision.graph, FEATURES, "own_features")
    vision.graph.node.append(helper.make_node("Concat", ["own_features", *parts[1:]], [FEATURES], axis=1))
    del vision.graph.output[:]
    vision.graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["tokens", columns]))

    wide = helper.make_tensor_value_info(EMBEDS, TensorProto.FLOAT, ["batch_size", "length", columns])
    rename(table.graph, EMBEDS, "own_embeds")
    table.graph.initializer.append(numpy_helper.from_array(np.asarray(np.float32(0)), "nothing"))
    table.graph.node.extend(
        [
            helper.make_node("Mul", ["own_embeds", "nothing"], ["no_features"]),
            helper.make_node("Concat", ["own_embeds", *["no_features"] * (len(parts) - 1)], [EMBEDS], axis=2),
        ]
    )
    del table.graph.output[:]
    table.graph.output.append(wide)

    features = [value for value in decoder.graph.input if value.name.startswith("deepstack_embeds")]
    for value in (*features, *(value for value in decoder.graph.input if value.name == EMBEDS)):
        decoder.graph.input.remove(value)
    rename(decoder.graph, EMBEDS, "own_embeds")
    outputs = ["own_embeds", *(value.name for value in features)]
    decoder.graph.node.insert(0, helper.make_node("Split", [EMBEDS], outputs, axis=2, num_outputs=len(outputs)))
    decoder.graph.input.append(wide)

    for name, model in {"vision_encoder": vision, "embed_tokens": table, "decoder_model_merged": decoder}.items():
        onnx.save(model, folder / f"{name}.onnx")
    return columns


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a value another name wherever a node makes or reads it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new


def name_states(graph: onnx.GraphProto) -> None:
    """Give states of convolutions and of linear attention the names that transformers.js feeds."""
    for value in (*graph.input, *graph.output):
        whole, _, rest = value.name.partition(".")
        layer, _, kind = rest.partition(".")
        if kind in STATES:
            name = f"{whole.removesuffix('_key_values')}_{STATES[kind]}.{layer}"
            rename(graph, value.name, name)
            value.name = name


def count_in_one_row(graph: onnx.GraphProto) -> None:
    """Take positions [B, S] in place of three equal rows [3, B, S]."""
    (given,) = (value for value in graph.input if value.name == "position_ids")
    graph.input.remove(given)
    rename(graph, "position_ids", "three_rows")
    begin(
        graph,
        helper.make_node("Unsqueeze", ["position_ids", constant(graph, [0])], ["one_row"]),
        helper.make_node("Expand", ["one_row", constant(graph, [3, 1, 1])], ["three_rows"]),
    )
    graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch_size", "length"]))


def tiles_by_picture(graph: onnx.GraphProto) -> None:
    """Take tiles [pictures, tiles, ...] in place of [tiles, ...]."""
    (given,) = graph.input
    sizes = [size.dim_value for size in given.type.tensor_type.shape.dim][1:]
    graph.input.remove(given)
    rename(graph, given.name, "tiles")
    begin(graph, helper.make_node("Reshape", [given.name, constant(graph, [-1, *sizes])], ["tiles"]))
    graph.input.append(helper.make_tensor_value_info(given.name, TensorProto.FLOAT, ["pictures", "tiles", *sizes]))


def begin(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes in front of a graph's."""
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)


def constant(graph: onnx.GraphProto, value: list[int]) -> str:
    """The name of whole numbers that a graph holds."""
    name = f"whole_{len(graph.initializer)}"
    graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
    return name
