"""The written decoder without rounded activations, read at every step of an answer in a few calls.

It tells logits, and hidden states after each of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_export.check.blocks import watched
from edgetune_export.decoder.builder import BLOCK
from edgetune_runtime.backends import Device, Float, Int
from edgetune_runtime.backends.onnx.graphs import open_graph
from edgetune_runtime.backends.onnx.heads import LOGITS_AT
from edgetune_runtime.decode import Prompt

STEPS = 256
"""Logits that the graph gives of the last tokens of a call: the check's longest answer is shorter."""

WATCH, STATES = "watched_tokens", "hidden_states"
"""Names of the input and the outputs that `for_every_step` adds."""

Embed = Callable[[Int], Float]
"""Rows [S, H] of the token table, in float32 and not rounded as the export's."""


class Decoder(Protocol):
    """A decoder with a cache.

    Attributes:
        half: whether it computes in float16.
    """

    half: bool

    def reset(self, length: int) -> None:
        """Begin a sequence of at most so many tokens."""

    def read(self, states: Float, positions: Int, deepstack: Sequence[Float], watch: Int) -> tuple[Float, Float]:
        """Append tokens [S, H] at positions [3, S].

        Returns:
            Logits [at most S, V] of the last ones, and states [blocks, W, H] after each block of those W tokens whose
            numbers are in `watch`.
        """


def read_answer(decoder: Decoder, embed: Embed, prompt: Prompt, tokens: Sequence[int]) -> tuple[Float, Float]:
    """Logits [steps, V] along an answer, and states [blocks, W, H] of its watched tokens.

    The prompt is read in one call, the first token alone, and the others in one call more: the cache is used with one
    new token and with several.

    Args:
        decoder: with `STEPS` logits a call.
        embed: the token table.
        prompt: with image features.
        tokens: the answer.
    """
    decoder.reset(len(prompt.token_ids) + len(tokens))
    states = embed(prompt.token_ids)
    places = prompt.token_ids == prompt.image_token
    deepstack = []
    if prompt.image is not None:
        states[places] = prompt.image.embeddings
        for features in prompt.image.deepstack:
            deepstack.append(np.zeros_like(states))
            deepstack[-1][places] = features
    count = len(states)
    watch = watched(count, len(tokens) - 1)
    logits, kept = decoder.read(states, prompt.positions, deepstack, watch[watch < count])
    rows, hidden = [logits[-1:]], [kept]
    start = prompt.next_position
    for part in (tokens[:1], tokens[1:-1]) if len(tokens) > 1 else ():
        if part:
            positions = np.broadcast_to(np.arange(start, start + len(part)), (3, len(part)))
            here = watch[(watch >= count) & (watch < count + len(part))] - count
            logits, kept = decoder.read(embed(np.array(part, np.int64)), positions, (), here)
            rows.append(logits)
            hidden.append(kept)
            start += len(part)
            count += len(part)
    return np.concatenate(rows), np.concatenate(hidden, axis=1)


class GraphDecoder:
    """A decoder in the dialects of onnxruntime.

    Args:
        path: the graph, from `for_every_step`.
        weights: values of weights that it leaves out, by name.
    """

    def __init__(self, path: Path, weights: Mapping[str, NDArray[Any]] | None = None) -> None:
        self._session = open_graph(path, Device("cpu"), None, weights, accuracy_level=0)
        self._outputs = [node.name for node in self._session.get_outputs()]
        inputs = self._session.get_inputs()
        self._deepstack = [node.name for node in inputs if node.name.startswith("deepstack_embeds.")]
        self._caches = [node for node in inputs if node.name.startswith("past_key_values.")]
        self.half = any(_dtype(node) == np.float16 for node in self._caches)
        self._chooses = LOGITS_AT in {node.name for node in self._session.get_overridable_initializers()}
        self._past: dict[str, Any] = {}
        self._length = 0

    def reset(self, length: int) -> None:
        """Begin an empty sequence."""
        # What grows begins empty, states of a fixed size begin at zero.
        self._past = {node.name: np.zeros(_begin(node.shape), _dtype(node)) for node in self._caches}
        self._length = 0

    def read(self, states: Float, positions: Int, deepstack: Sequence[Float], watch: Int) -> tuple[Float, Float]:
        """Append tokens."""
        self._length += len(states)
        feeds = {
            "inputs_embeds": states[None],
            "position_ids": np.ascontiguousarray(positions[:, None]),
            "attention_mask": np.ones((1, self._length), np.int64),
            WATCH: watch,
            **self._past,
        }
        if self._chooses:
            feeds[LOGITS_AT] = np.arange(-min(len(states), STEPS), 0)
        for number, name in enumerate(self._deepstack):
            feeds[name] = deepstack[number][None] if deepstack else np.zeros_like(states[None])
        given = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        self._past = {name: given[name.replace("past_key_values", "present")] for name in self._past}
        return given["logits"][0], block_states(given)


def _dtype(node: Any) -> type[np.generic]:
    """Of a cache: that of linear attention is in float32 beside keys in float16."""
    return np.float16 if node.type == "tensor(float16)" else np.float32


def _begin(shape: Sequence[int | str]) -> tuple[int, ...]:
    """The shape of a cache before the first token, of a batch of one."""
    return (1, *(size if isinstance(size, int) else 0 for size in shape[1:]))


def block_states(given: Mapping[str, NDArray[Any]]) -> Float:
    """States [blocks, W, H] in float32 among the outputs of a graph, in their order; none unless `for_every_step`."""
    return np.array([array[0] for name, array in given.items() if name.startswith(STATES)], np.float32)


def for_every_step(model: ir.Model) -> ir.Model:
    """Make a decoder's graph tell what a check compares, with activations that are not rounded.

    It gives logits of each call's last `STEPS` tokens, and states [1, W, H] after each block of the tokens that its new
    input numbers. The graph is changed in place, and returned; its weights stay what they are.
    """
    start = model.graph.initializers.get("slice.start")  # where the graph does not let its caller choose
    if start is not None:
        start.const_value = ir.tensor(np.array([-STEPS]), name=start.name)
        logits = next(value for value in model.graph.outputs if value.name == "logits")
        assert logits.shape is not None
        logits.shape = ir.Shape([logits.shape[0], "steps", logits.shape[2]])
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes.add(ir.AttrInt64("accuracy_level", 0))
    _tell_states(model.graph)
    return model


def _tell_states(graph: ir.Graph) -> None:
    """Add the outputs of states: what a block adds, and what it is added to, of the watched tokens alone."""
    watch = ir.Value(name=WATCH, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([WATCH]))
    graph.inputs.append(watch)
    values = {value.name: value for node in graph for value in node.outputs}
    layers = {value.name.split(".")[1] for value in graph.outputs if value.name and value.name.startswith("present.")}
    tape, told = ir.tape.Tape(graph), []
    # onnxruntime goes for the result of the last node first: in this order no block's states wait for the others.
    for layer in reversed(range(len(layers))):
        parts = [values[f"{BLOCK}.{layer}.{part}"] for part in ("update", "residual")]
        sums = tape.op("Add", [tape.op("Gather", [part, watch], {"axis": 1}) for part in parts])
        states = tape.op("Cast", [sums], {"to": ir.DataType.FLOAT})
        states.name, states.type = f"{STATES}.{layer}", ir.TensorType(ir.DataType.FLOAT)
        states.shape = ir.Shape([1, WATCH, None])
        told.append(states)
    graph.outputs.extend(reversed(told))
