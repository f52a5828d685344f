"""What a decoder's graph reads besides its cache, in memory that stays bound from one call to the next.

A step of one token is short enough for the binding of its inputs to be a good part of it in a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetune_runtime.backends.onnx.graphs import onnxruntime
from edgetune_runtime.backends.values import Float, Int

MASK = "attention_bias"
"""Optional input float32 [1, 1, S, T], added to scores of attention."""


class Inputs:
    """The inputs of one session's decoder, for a batch of one.

    Args:
        session: of the decoder.
        binding: of its inputs and outputs.

    Attributes:
        deepstack: names of the inputs that take image features.
        masks: whether scores of attention can be given a bias.
    """

    def __init__(self, session: Any, binding: Any) -> None:
        self._binding = binding
        self.deepstack = sorted(node.name for node in session.get_inputs() if node.name.startswith("deepstack_embeds."))
        self.masks = MASK in {node.name for node in session.get_overridable_initializers()}
        self.forget()

    def forget(self) -> None:
        """Bind anew, after all that was bound has been cleared."""
        self._arrays: dict[str, Any] = {}
        self._values: dict[str, Any] = {}
        self._ones = np.ones((1, 0), np.int64)
        self._zero_deepstack = False
        self._biased = True  # so that the first call binds none

    def bind(
        self, past: int, embeddings: Float, positions: Int, deepstack: Sequence[Float], bias: Float | None = None
    ) -> None:
        """Let the next call read tokens that follow `past` others.

        Args:
            past: tokens so far.
            embeddings: float32 [S, H].
            positions: int64 [3, S].
            deepstack: float32 [S, H] each, or none for zeros.
            bias: float32 [S, T] of attention, None for zeros.
        """
        count, width = embeddings.shape
        total = past + count
        if len(self._arrays.get("inputs_embeds", ((),))[0]) != count:
            self._new("inputs_embeds", np.empty((1, count, width), np.float32))
            self._new("position_ids", np.empty((3, 1, count), np.int64))
            for name in self.deepstack:
                self._new(name, np.zeros((1, count, width), np.float32))
            self._zero_deepstack = True
        self._arrays["inputs_embeds"][0] = embeddings
        self._arrays["position_ids"][:, 0] = positions
        if deepstack or not self._zero_deepstack:
            for number, name in enumerate(self.deepstack):
                self._arrays[name][0] = deepstack[number] if deepstack else 0
            self._zero_deepstack = not deepstack
        if self._ones.shape[1] < total:
            self._ones = np.ones((1, 2 * total), np.int64)
        self._binding.bind_cpu_input("attention_mask", self._ones[:, :total])
        if self.masks and (bias is not None or self._biased):
            self._new(
                MASK, np.zeros((1, 1, 1, 1), np.float32) if bias is None else np.array(bias[None, None], order="C")
            )
            self._biased = bias is not None

    def _new(self, name: str, array: Any) -> None:
        """Bind an array, which is read where it lies."""
        self._arrays[name] = array
        self._values[name] = onnxruntime().OrtValue.ortvalue_from_numpy(array)
        self._binding.bind_ortvalue_input(name, self._values[name])
