"""Files of graphs, as onnx reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from edgetune_export.graph import GraphBuilder, save_model


def test_large_weights_lie_where_every_system_can_map_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = {"small": 3001, "first": 1 << 20 | 5, "odd": 1025, "second": 3 << 20}
    weights = {name: generator.integers(0, 256, size, dtype=np.uint8) for name, size in sizes.items()}
    graph = GraphBuilder("sum")
    for name, array in weights.items():
        value = graph.weight(name, ir.DataType.UINT8, array.shape, array.copy)
        graph.output(graph.op("Identity", value), f"{name}_out", ir.DataType.UINT8, array.shape)
    save_model(graph.model(20), tmp_path / "graph.onnx")

    places = onnx.load(tmp_path / "graph.onnx", load_external_data=False).graph.initializer
    offsets = {
        tensor.name: int({entry.key: entry.value for entry in tensor.external_data}.get("offset", 0))
        for tensor in places
    }
    assert [offsets[name] % (64 << 10) for name in ("first", "second")] == [0, 0]
    assert offsets["second"] > 0
    assert (tmp_path / "graph.onnx.data").stat().st_size < sum(sizes.values()) + 2 * (64 << 10)
    for tensor in onnx.load(tmp_path / "graph.onnx").graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights[tensor.name])
