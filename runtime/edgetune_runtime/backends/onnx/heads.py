"""What a decoder's graph tells of tokens: the logits of all, or those of an answer's own tokens, after wanted ones.

A graph of this version takes the numbers of the tokens after which it is asked, once for each of its heads. Both have
a value of their own, for readers that know of none: the last token's logits, and none of the other head's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetune_runtime.backends.onnx.graphs import onnxruntime
from edgetune_runtime.backends.values import Float

LOGITS, ANSWERS = "logits", "answer_logits"
"""Outputs: float32 [B, n, V], and [B, m, N] of the N tokens that answers are made of."""

LOGITS_AT, ANSWERS_AT = "logits_at", "answers_at"
"""Inputs with a value of their own: int64 [n] and [m], numbers of this call's tokens, from the end where negative."""


class Heads:
    """The heads of one session, bound to memory that stays as long as the number of rows is the same.

    Args:
        session: of the decoder.
        binding: of its inputs and outputs.

    Attributes:
        choose: whether the graph can be asked after other tokens than the last.
        answers: how many tokens its second head has; 0 without one.
    """

    def __init__(self, session: Any, binding: Any) -> None:
        self._binding = binding
        optional = {node.name for node in session.get_overridable_initializers()}
        shapes = {node.name: node.shape for node in session.get_outputs() if node.name in (LOGITS, ANSWERS)}
        sizes = {name: shape[-1] for name, shape in shapes.items()}
        # onnxruntime refuses memory for other rows than the graph declares, and makes its own with a warning.
        self._declared = {name: shape[1] for name, shape in shapes.items() if isinstance(shape[1], int)}
        self.choose = LOGITS_AT in optional
        self.answers = int(sizes.get(ANSWERS, 0)) if ANSWERS_AT in optional else 0
        self._inputs = {LOGITS: LOGITS_AT} | ({ANSWERS: ANSWERS_AT} if self.answers else {})
        self._widths = {name: int(sizes[name]) for name in self._inputs}
        self._bound: dict[str, Float | None] = {}
        self._numbers: dict[str, Any] = {}
        self._wanted: tuple[str, Sequence[int]] | None = None
        self.forget()

    def forget(self) -> None:
        """Bind anew, after all that was bound has been cleared."""
        self._bound, self._wanted = {}, None
        self.want(LOGITS, [-1])

    def want(self, head: str, rows: Sequence[int]) -> None:
        """Let the next call tell one head's outputs after these of its tokens, and none of the other head's."""
        if (head, rows) == self._wanted and all(bound is not None for bound in self._bound.values()):
            return
        self._wanted = head, list(rows)
        for name, wanted in self._inputs.items():
            numbers = np.array(rows if name == head else [], np.int64)
            if self.choose:  # bind_cpu_input knows inputs without a value of their own only
                self._numbers[name] = onnxruntime().OrtValue.ortvalue_from_numpy(numbers)
                self._binding.bind_ortvalue_input(wanted, self._numbers[name])
            elif name == head:
                numbers = np.array([-1])  # a graph without a choice tells the last one
            bound = self._bound.get(name)
            if len(numbers) != self._declared.get(name, len(numbers)):
                self._bound[name] = None
                self._binding.bind_output(name, "cpu")  # before every call: what one has made sticks
            elif bound is None or bound.shape[1] != len(numbers):
                bound = self._bound[name] = np.empty((1, len(numbers), self._widths[name]), np.float32)
                self._binding.bind_ortvalue_output(name, onnxruntime().OrtValue.ortvalue_from_numpy(bound))

    def given(self, head: str, count: int) -> Float:
        """What the call told of a head, float32 [count, ...]; valid until the next."""
        bound = self._bound[head]
        if bound is None:
            bound = self._binding.get_outputs()[list(self._bound).index(head)].numpy()
        rows: Float = bound[0, :count]
        return rows
