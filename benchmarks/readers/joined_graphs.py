"""A bundle's graphs with DeepStack's features as further columns of the embeddings, for engines that know no DeepStack.

    features of a picture [tokens, H · (1 + D)]; embeddings [B, S, H · (1 + D)], with zeros for tokens of text

What such an engine puts among the embeddings carries the features along, and the decoder cuts them apart again. The
graphs keep the names of their inputs and outputs, and weights are not touched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EMBEDS, FEATURES = "inputs_embeds", "image_features"


def join(folder: Path) -> int:
    """Rewrite the three graphs in a folder; returns the columns of an embedding, which are H where there is no D."""
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
