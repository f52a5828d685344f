"""The decode loop that keeps to a grammar: several tokens a pass wherever they are known or expected.

Answers about one picture that are wanted together are written side by side, each pass reading the next tokens of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgetune_runtime.backends import Backend, Float, Int
from edgetune_runtime.constrained.draft import Draft
from edgetune_runtime.constrained.walk import Rules
from edgetune_runtime.constrained.writer import Pass, Writer
from edgetune_runtime.decode import SPARE, Prompt, Step, begin, check_room


def constrained_steps(
    backend: Backend,
    prompt: Prompt,
    rules: Rules,
    draft: Draft,
    *,
    max_new_tokens: int,
    max_length: int,
    known: int = 0,
) -> Iterator[Step]:
    """Generate the most likely token that is legal again and again, up to and including the one that ends the answer.

    Args:
        backend: that reads.
        prompt: what is read first, with a picture.
        rules: what the answer is held to.
        draft: what it is expected to be; an engine that cannot take tokens back does without.
        max_new_tokens: longest answer.
        max_length: longest sequence.
        known: as of `edgetune_runtime.decode.prefill`.

    Raises:
        InputError: the prompt and `max_new_tokens` together exceed `max_length`.
    """
    size = len(prompt.token_ids)
    check_room(size, max_new_tokens, max_length)
    begin(backend, prompt, room=min(max_new_tokens + SPARE, max_length - size), known=known)
    line = _Line(prompt, Writer(rules, draft, max_new_tokens, speculates=backend.speculates))
    while not line.writer.over:
        planned = line.writer.plan()
        if isinstance(planned, list):
            yield from planned
            return
        tokens, positions, rows = line.next(planned)
        read = backend.forward_at if planned.names else backend.answers_at
        start = backend.length
        logits = read(backend.embed(tokens), positions, at=rows)
        steps = line.writer.take(logits, None if planned.names else backend.answer_tokens)
        kept = line.told(planned, steps)
        if not line.writer.over:
            backend.rewind(start + kept)
        yield from steps


def constrained_together(
    backend: Backend,
    prompts: Sequence[Prompt],
    held: Sequence[tuple[Rules, Draft]],
    *,
    max_new_tokens: int,
    max_length: int,
    known: int = 0,
) -> Iterator[list[list[Step]]]:
    """Generate the answers to several prompts about one picture side by side, on an engine that can branch.

    Args:
        backend: that reads.
        prompts: with the same beginning, up to the picture's end.
        held: what the answer to each is held to and expected to be.
        max_new_tokens: longest answer.
        max_length: longest sequence.
        known: as of `edgetune_runtime.decode.prefill`.

    Yields:
        After each pass the tokens that are new in each answer.

    Raises:
        InputError: a prompt and `max_new_tokens` together exceed `max_length`.
    """
    trunk = prompts[0].shared
    for prompt in prompts:
        check_room(len(prompt.token_ids), max_new_tokens, max_length)
    begin(backend, prompts[0], room=room_together(prompts, max_new_tokens), known=known)
    backend.branch(trunk)
    lines = [
        _Line(prompt, Writer(*each, max_new_tokens, speculates=True))
        for prompt, each in zip(prompts, held, strict=True)
    ]
    while any(not line.writer.over for line in lines):
        found: list[list[Step]] = [[] for _ in lines]
        asked: dict[int, Pass] = {}
        for number, line in enumerate(lines):
            if not line.writer.over:
                planned = line.writer.plan()
                if isinstance(planned, list):
                    found[number] = planned
                else:
                    asked[number] = planned
        if asked:
            _read_together(backend, lines, asked, found, trunk)
        yield found


def room_together(prompts: Sequence[Prompt], max_new_tokens: int) -> int:
    """Tokens that `constrained_together` wants room for, behind the first prompt.

    Answers are mostly much shorter than they may be, so that there is room for the longest one and for usual others.
    What was read ahead in vain takes room too; when there is no more, what is true is read anew.
    """
    return sum(len(prompt.token_ids) - prompt.shared + SPARE for prompt in prompts) + max_new_tokens + 2 * SPARE


class _Line:
    """A prompt's words and the answer behind them: what is written of it, and how much of that the model has read."""

    def __init__(self, prompt: Prompt, writer: Writer) -> None:
        self.writer = writer
        self.read = 0
        self._ids = prompt.token_ids[prompt.shared :].tolist()
        self._positions = prompt.positions[:, prompt.shared :]
        self._next = prompt.next_position

    def next(self, planned: Pass) -> tuple[Int, Int, list[int]]:
        """What a pass reads: token ids int64 [S], positions int64 [3, S], and the rows that are wanted."""
        words = self._positions.shape[1]
        tokens = np.array([*self._ids[self.read :], *planned.tokens], np.int64)
        written = np.arange(max(self.read, words), self.read + len(tokens)) - words + self._next
        positions = np.concatenate([self._positions[:, self.read :], np.tile(written, (3, 1))], axis=1)
        return tokens, positions, [len(self._ids) - self.read + row for row in planned.rows]

    def told(self, planned: Pass, steps: Sequence[Step]) -> int:
        """Take what a pass told; returns how many of the tokens that it read belong to the answer."""
        right = [step.token == token for step, token in zip(steps, planned.tokens, strict=False)]
        kept = len(self._ids) - self.read + (right.index(False) if False in right else len(right))
        self._ids += [step.token for step in steps]
        self.read += kept
        return kept


_Part = tuple[int, Int, Int, list[int]]
"""What a pass reads of a line: its number, tokens, positions, and the rows that are wanted."""


def _fitting(backend: Backend, lines: Sequence[_Line], asked: dict[int, Pass]) -> list[_Part]:
    """The next tokens of the lines in their order, up to the first for which there is no room."""
    left, parts = backend.capacity - backend.length, list[_Part]()
    for number, planned in asked.items():
        tokens, positions, rows = lines[number].next(planned)
        if len(tokens) > left:
            break
        left -= len(tokens)
        parts.append((number, tokens, positions, rows))
    return parts


def _read_together(
    backend: Backend, lines: Sequence[_Line], asked: dict[int, Pass], found: list[list[Step]], trunk: int
) -> None:
    """One pass over the next tokens of as many lines as there is room for; their new tokens are put into `found`."""
    parts = _fitting(backend, lines, asked)
    if len(parts) < len(asked):
        backend.branch(trunk)
        for line in lines:
            line.read = 0
        parts = _fitting(backend, lines, asked)  # those that are left out wait until others are over
    starts = np.cumsum([0, *(len(tokens) for _, tokens, _, _ in parts)]).tolist()
    names = any(asked[number].names for number, *_ in parts)
    logits = backend.branches_at(
        backend.embed(np.concatenate([tokens for _, tokens, _, _ in parts])),
        np.concatenate([positions for _, _, positions, _ in parts], axis=1),
        np.concatenate([np.full(len(tokens), number) for number, tokens, _, _ in parts]),
        at=[start + row for (_, _, _, rows), start in zip(parts, starts, strict=False) for row in rows],
        answers=not names,
    )
    done, wrong = 0, []
    for (number, tokens, _, rows), start in zip(parts, starts, strict=False):
        part: Float = logits[done : done + len(rows)]
        done += len(rows)
        found[number] = lines[number].writer.take(part, None if names else backend.answer_tokens)
        kept = lines[number].told(asked[number], found[number])
        wrong += [place - starts[-1] for place in range(start + kept, start + len(tokens))]
    backend.drop(wrong)
