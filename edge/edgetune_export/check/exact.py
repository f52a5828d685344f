"""The written decoder without rounded activations, read at every step of an answer in a few calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgetune_runtime.backends import Device, Float, Int
from edgetune_runtime.backends.onnx.graphs import open_graph
from edgetune_runtime.decode import Prompt

STEPS = 256
"""Logits that the graph gives of the last tokens of a call: the check's longest answer is shorter."""

Embed = Callable[[Int], Float]
"""Rows [S, H] of the token table, in float32 and not rounded as the export's."""


class Decoder(Protocol):
    """A decoder with a cache."""

    def reset(self, length: int) -> None:
        """Begin a sequence of at most so many tokens."""

    def read(self, states: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens [S, H] at positions [3, S]; returns logits [at most S, V] of the last ones."""


def read_answer(decoder: Decoder, embed: Embed, prompt: Prompt, tokens: Sequence[int]) -> Float:
    """Logits [steps, V] along an answer.

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
    rows = [decoder.read(states, prompt.positions, deepstack)[-1:]]
    start = prompt.next_position
    for part in (tokens[:1], tokens[1:-1]) if len(tokens) > 1 else ():
        if part:
            positions = np.broadcast_to(np.arange(start, start + len(part)), (3, len(part)))
            rows.append(decoder.read(embed(np.array(part, np.int64)), positions, ()))
            start += len(part)
    return np.concatenate(rows)


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
        self._past: dict[str, Any] = {}
        self._length = 0

    def reset(self, length: int) -> None:
        """Begin an empty sequence."""
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._past = {
            node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), types[node.type]) for node in self._caches
        }
        self._length = 0

    def read(self, states: Float, positions: Int, deepstack: Sequence[Float]) -> Float:
        """Append tokens."""
        self._length += len(states)
        feeds = {
            "inputs_embeds": states[None],
            "position_ids": np.ascontiguousarray(positions[:, None]),
            "attention_mask": np.ones((1, self._length), np.int64),
            **self._past,
        }
        for number, name in enumerate(self._deepstack):
            feeds[name] = deepstack[number][None] if deepstack else np.zeros_like(states[None])
        given = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        self._past = {name: given[name.replace("past_key_values", "present")] for name in self._past}
        logits: Float = given["logits"][0]
        return logits


def for_every_step(model: ir.Model) -> ir.Model:
    """Make a decoder's graph give logits of each call's last `STEPS` tokens, with activations that are not rounded.

    The graph is changed in place, and returned; its weights stay what they are.
    """
    start = model.graph.initializers["slice.start"]
    start.const_value = ir.tensor(np.array([-STEPS]), name=start.name)
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    assert logits.shape is not None
    logits.shape = ir.Shape([logits.shape[0], "steps", logits.shape[2]])
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes.add(ir.AttrInt64("accuracy_level", 0))
    return model
