"""InternVL's tower: InternViT over tiles without its class token, squares of patches side by side, and a projector."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from torch import nn

from edgetune_export.vision.attention import Operators
from edgetune_export.vision.towers.tiles import LayerNames, TileWriter, layers_before, tile_sizes
from edgetune_export.vision.writer import FEATURES, OPSET, VisionSource
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.tiles import DynamicTiles

LAYER = LayerNames("layernorm_before", "attention", "projection_layer", "layernorm_after", ("lambda_1", "lambda_2"))


class InternVLTower:
    """InternViT and a projector. Input: pixel_values float32 [tiles, 3, side, side]; output: image_features."""

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph; see `Tower`."""
        tower, config = source.tower, source.model.config
        embeddings = tower.embeddings
        writer = TileWriter(source, operators, dtype, LAYER)
        states = writer.embed(embeddings.patch_embeddings.projection, "embeddings.patch_embeddings.projection")
        states = writer.with_class_token(states, embeddings.cls_token, "embeddings.cls_token")
        if embeddings.position_embeddings is not None:
            states = writer.add_positions(states, embeddings.position_embeddings, "embeddings.position_embeddings")
        blocks = tower.encoder.layer
        layers = layers_before(config.vision_feature_layer, len(blocks))
        states = writer.layers(blocks, "encoder.layer", states, layers)
        if config.vision_feature_layer == -1 and not isinstance(tower.layernorm, nn.Identity):
            states = writer.norm("tower.layernorm", tower.layernorm, states)
        if config.vision_feature_select_strategy == "default":
            states = writer.without_class_token(states)
        projector = source.model.get_submodule(source.modules.mergers[0])
        states = writer.shuffled(states, round(1 / config.downsample_ratio))
        states = writer.norm("projector.layer_norm", projector.layer_norm, states)
        states = writer.linear("projector.linear_1", projector.linear_1, states)
        states = writer.activate(config.projector_hidden_act, states)
        features = writer.linear("projector.linear_2", projector.linear_2, states)
        writer.output(features, FEATURES, config.text_config.hidden_size)
        return writer.graph.model(OPSET)

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """Sizes of the free inputs; see `Tower`."""
        assert isinstance(spec, DynamicTiles)
        return tile_sizes(source, tokens // spec.tile_tokens)
