"""The tower of Idefics3 and SmolVLM: SigLIP over tiles with its last norm, squares of patches, and one product."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgetune_export.decoder.rounding import to_numpy
from edgetune_export.graph import cast_float
from edgetune_export.vision.attention import Operators
from edgetune_export.vision.towers.tiles import TileWriter, tile_sizes
from edgetune_export.vision.writer import FEATURES, OPSET, VisionSource
from edgetune_runtime.images.base import Preprocessing
from edgetune_runtime.images.split import SplitTiles


class Idefics3Tower:
    """SigLIP and a connector. Input: pixel_values float32 [tiles, 3, side, side]; output: image_features."""

    def write(self, source: VisionSource, operators: Operators, dtype: ir.DataType) -> ir.Model:
        """Write the graph; see `Tower`."""
        tower = source.tower
        writer = TileWriter(source, operators, dtype)
        embeddings = tower.embeddings
        states = writer.embed(embeddings.patch_embedding, "embeddings.patch_embedding")
        table, places = embeddings.position_embedding.weight, _places(writer.across)
        positions = writer.graph.weight(
            "tower.embeddings.position_embedding.weight",
            dtype,
            (writer.length, writer.hidden),
            lambda: cast_float(to_numpy(source.values(table))[places], dtype),
        )
        states = writer.flat(writer.graph.op("Add", writer.by_tile(states), positions))
        states = writer.layers(tower.encoder.layers, "encoder.layers", states)
        states = writer.norm("tower.post_layernorm", tower.post_layernorm, states)
        connector = source.model.get_submodule(source.modules.mergers[0])
        states = writer.shuffled(states, connector.scale_factor)
        projection = connector.modality_projection.proj
        writer.output(writer.linear("connector.proj", projection, states), FEATURES, len(projection.weight))
        return writer.graph.model(OPSET)

    def sizes(self, source: VisionSource, spec: Preprocessing, tokens: int) -> Mapping[str, list[list[int]]]:
        """Sizes of the free inputs; see `Tower`."""
        assert isinstance(spec, SplitTiles)
        return tile_sizes(source, tokens // spec.tile_tokens)


def _places(across: int) -> NDArray[np.int64]:
    """Which vector of the position table each patch of a whole tile has.

    A patch's place is found by counting which of the table's borders it has passed, in float32, as transformers does;
    where rounding puts it before a border it shares the vector of the patch before.
    """
    one = torch.tensor(1.0)
    borders = torch.arange(1 / across, 1.0, 1 / across)
    places = (torch.arange(across, dtype=torch.float32) * (one / across)).clamp(max=1.0 - 1e-6)
    found: NDArray[np.int64] = torch.bucketize(places, borders, right=True).numpy()
    every: NDArray[np.int64] = np.add.outer(found * across, found).ravel()
    return every
