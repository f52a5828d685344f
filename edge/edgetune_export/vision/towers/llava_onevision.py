"""LLaVA-OneVision's tower: SigLIP over tiles, a projector, and the features that remain when padding is dropped.

Which features those are depends on the picture's size alone, so preprocessing says it (`token_rows`, `token_shares`);
here they are gathered, beside the learned vector that ends each row of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgetune_export.vision.attention import Operators
from edgetune_export.vision.towers.llava import project
from edgetune_export.vision.towers.tiles import TileWriter, layers_before, tile_sizes
from edgetune_export.vision.writer import FEATURES, OPSET, VisionSource
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.anyres import AnyResolution
from edgetune_runtime.images.base import Preprocessing

TAPS = 4
"""Features that a token is made of where a grid is shrunk bilinearly."""


class OneVisionTower:
    """SigLIP, a projector, and tokens put together.

    Inputs: pixel_values float32 [tiles, 3, side, side], token_rows int64 [tokens, 4] and token_shares float32 [tokens,
    4]; output: image_features.
    """

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph; see `Tower`."""
        tower, config = source.tower, source.model.config
        if tower.config.model_type != "siglip_vision_model":
            raise InputError(
                f"a LLaVA-OneVision with a {tower.config.model_type!r} tower cannot be exported",
                hint="siglip_vision_model can",
            )
        writer = TileWriter(source, operators, dtype)
        embeddings = tower.embeddings
        states = writer.embed(embeddings.patch_embedding, "embeddings.patch_embedding")
        states = writer.add_positions(
            states, embeddings.position_embedding.weight, "embeddings.position_embedding.weight"
        )
        layers = layers_before(config.vision_feature_layer, len(tower.encoder.layers))
        states = writer.layers(tower.encoder.layers, "encoder.layers", states, layers)
        features = _gathered(writer, project(writer, states))
        writer.output(features, FEATURES, config.text_config.hidden_size)
        return writer.graph.model(OPSET)

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """Sizes of the free inputs; see `Tower`."""
        assert isinstance(spec, AnyResolution)
        most = 1 + max(height * width // spec.side**2 for height, width in spec.canvases)
        counts = [[count, TAPS] for count in (1, tokens, tokens)]
        return {**tile_sizes(source, most), "token_rows": counts, "token_shares": counts}


def _gathered(writer: TileWriter, features: ir.Value) -> ir.Value:
    """[tokens, H]: sums of the rows that each token is made of; row 0 is the learned vector, the features follow."""
    graph, whole = writer.graph, writer.whole
    rows = graph.input("token_rows", ir.DataType.INT64, ("tokens", TAPS))
    shares = writer.to(graph.input("token_shares", ir.DataType.FLOAT, ("tokens", TAPS)), writer.dtype)
    vector = writer.source.model.model.image_newline
    newline = writer.weight("image_newline", vector, writer.dtype)
    every = graph.op("Concat", graph.op("Unsqueeze", newline, whole.number([0])), features, axis=0)
    total: ir.Value | None = None
    for tap in range(TAPS):
        row = graph.op("Gather", rows, whole.number(tap), axis=1)
        share = graph.op("Gather", shares, whole.number([tap]), axis=1)
        part = graph.op("Mul", graph.op("Gather", every, row), share)
        total = part if total is None else graph.op("Add", total, part)
    assert total is not None
    return total
