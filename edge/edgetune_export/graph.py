"""A thin builder over onnx-ir: nodes by method call, named constants, lazily read weights, external data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass

from edgetune_core.progress import Tell, no_one

Dim = int | str

MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""

ONNX_DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


class GraphBuilder:
    """Collects the nodes and weights of one graph."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tape = self._weights = ir.tape.Tape()
        self._domains: set[str] = set()
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._constants: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Declare a graph input; a string dimension is free."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def optional(self, name: str, array: NDArray[Any], shape: Sequence[Dim]) -> ir.Value:
        """Declare a graph input that has a value of its own, for readers that do not give it one."""
        value = self._weights.initializer(ir.tensor(array, name=name))
        value.shape = ir.Shape(shape)
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
        """Make a value a graph output under this name."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self._outputs.append(value)

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output and return the output."""
        return self._tape.op(kind, inputs, attributes, domain=domain)

    def ops(
        self, kind: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Add a node with several outputs."""
        return list(self._tape.op_multi_out(kind, inputs, attributes, domain=domain, num_outputs=outputs))

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A small constant; equal names share one initializer."""
        if name not in self._constants:
            self._constants[name] = self._weights.initializer(ir.tensor(array, name=name))
        return self._constants[name]

    def weight(self, name: str, dtype: ir.DataType, shape: Sequence[int], read: Callable[[], NDArray[Any]]) -> ir.Value:
        """A weight that is computed only while the model is written, so that one at a time is in memory."""
        lazy = ir.LazyTensor(lambda: ir.tensor(read(), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name)
        return self._weights.initializer(lazy)

    def stored(self, name: str, tensor: ir.ExternalTensor, shape: Sequence[int]) -> ir.Value:
        """A weight that is in another graph's data file, in the same folder, by another name or of another shape."""
        place = (tensor.location, tensor.offset, tensor.length, tensor.dtype)
        return self._weights.initializer(ir.ExternalTensor(*place, shape=ir.Shape(shape), name=name))

    def choose(self, condition: ir.Value, one: Callable[[], ir.Value], other: Callable[[], ir.Value]) -> ir.Value:
        """The value that one of two functions writes; at run time only that one is computed.

        Args:
            condition: a bool scalar: `one` where it is true.
            one: adds nodes and returns their result; it may use every value that is there already.
            other: likewise, for a result of the same type.
        """
        outer, branches = self._tape, {}
        for name, write in (("then_branch", one), ("else_branch", other)):
            self._tape = ir.tape.Tape()
            result = write()
            branches[name] = ir.Graph([], [result], nodes=self._tape.nodes, name=f"{self.name}_{name}")
            self._domains |= {domain for domain, _ in self._tape.used_opsets}
        self._tape = outer
        return self._tape.op("If", [condition], branches)

    def model(self, opset: int) -> ir.Model:
        """The finished model; opset is that of the standard domain."""
        domains = self._domains | {domain for domain, _ in self._tape.used_opsets}
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._tape.nodes,
            initializers=self._weights.initializers,
            opset_imports={"": opset, **{domain: 1 for domain in domains if domain}},
            name=self.name,
        )
        model = ir.Model(graph, ir_version=10, producer_name="edgetune")
        NameFixPass()(model)  # the values of a branch and those outside it share one space of names
        return model


def leave_out(model: ir.Model, names: Collection[str], location: str) -> None:
    """Make weights external data of a file that is not written: whoever loads the graph has to provide them by name."""
    for name in names:
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(location, 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)


ALIGNMENT = 64 << 10
"""Of the places of large weights in a data file, in bytes, so that readers can map each where it lies: the size of a
page on some Arm systems, and what Windows maps by."""
_ALIGNED_OVER = 1 << 20
"""Bytes of a weight that is large."""


def save_model(model: ir.Model, path: Path, tell: Tell = no_one, *, inline_limit: int = 1 << 20) -> None:
    """Write a model; weights go to `<file name>.data` beside it when they exceed `inline_limit` bytes in all.

    The graph names its data file by a bare file name, so the folder can be moved. Weights that are external data
    already stay what they are. Large weights lie at multiples of `ALIGNMENT`.

    Args:
        model: its weights may be lazy, they are computed one by one.
        path: of the graph.
        tell: called before a weight is written with its number and how many there are.
        inline_limit: bytes of weights that stay in the graph's own file.
    """
    own = [
        (value, value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor)
    ]
    if sum(tensor.nbytes for _, tensor in own) > inline_limit:
        large = [(value, tensor) for value, tensor in own if tensor.nbytes > 1024]
        tensors = [tensor for _, tensor in large]

        def told(tensor: object, place: ir.external_data.CallbackInfo) -> None:
            tell(place.index, place.total)

        written = ir.external_data.convert_tensors_to_external(
            tensors,
            path.parent,
            f"{path.name}.data",
            callback=told,
            alignment=ALIGNMENT,
            align_threshold=_ALIGNED_OVER,
        )
        for (value, _), tensor in zip(large, written, strict=True):
            value.const_value = tensor
    ir.save(model, path)


def cast_float(array: NDArray[Any], dtype: ir.DataType) -> NDArray[Any]:
    """A float array in the numpy dtype that stands for an ONNX one."""
    return np.ascontiguousarray(array, dtype=dtype.numpy())
