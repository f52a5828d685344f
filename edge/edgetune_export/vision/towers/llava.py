"""LLaVA-1.5's tower: CLIP up to its last layer but one, without the class token, and a projector of two layers."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgetune_export.vision.attention import Operators
from edgetune_export.vision.towers.tiles import TileWriter, layers_before, tile_sizes
from edgetune_export.vision.writer import FEATURES, OPSET, VisionSource
from edgetune_runtime.errors import InputError
from edgetune_runtime.images.base import Preprocessing


class LlavaTower:
    """CLIP and a projector. Input: pixel_values float32 [squares, 3, side, side]; output: image_features."""

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph; see `Tower`."""
        tower, config = source.tower, source.model.config
        if tower.config.model_type != "clip_vision_model":
            raise InputError(
                f"a LLaVA with a {tower.config.model_type!r} tower cannot be exported", hint="clip_vision_model can"
            )
        writer = TileWriter(source, operators, dtype)
        embeddings = tower.embeddings
        states = writer.embed(embeddings.patch_embedding, "embeddings.patch_embedding")
        states = writer.with_class_token(states, embeddings.class_embedding, "embeddings.class_embedding")
        states = writer.add_positions(
            states, embeddings.position_embedding.weight, "embeddings.position_embedding.weight"
        )
        states = writer.norm("tower.pre_layrnorm", tower.pre_layrnorm, states)
        layers = layers_before(config.vision_feature_layer, len(tower.encoder.layers))
        states = writer.layers(tower.encoder.layers, "encoder.layers", states, layers)
        if config.vision_feature_select_strategy == "default":
            states = writer.without_class_token(states)
        features = project(writer, states)
        writer.output(features, FEATURES, config.text_config.hidden_size)
        return writer.graph.model(OPSET)

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """Sizes of the free inputs; see `Tower`."""
        return tile_sizes(source, 1)


def project(writer: TileWriter, states: ir.Value) -> ir.Value:
    """LLaVA's projector: two linear layers with an activation between them."""
    projector = writer.source.model.get_submodule(writer.source.modules.mergers[0])
    inner = writer.linear("projector.linear_1", projector.linear_1, states)
    inner = writer.activate(writer.source.model.config.projector_hidden_act, inner)
    return writer.linear("projector.linear_2", projector.linear_2, inner)
