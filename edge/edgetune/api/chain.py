"""Stages one after the other, each told before it runs: what `demo` and `label --learn` are made of."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Any

from edgetune_core.options import options_taken, words_of
from edgetune_core.processes import apart
from edgetune_core.stage import StageResult

log = logging.getLogger("edgetune")


@dataclass(frozen=True)
class Step:
    """What a step is for, the command that does the same, and the call."""

    title: str
    command: str
    call: Callable[[], StageResult]

    @classmethod
    def of(
        cls,
        title: str,
        function: Callable[..., Any],
        values: dict[str, Any],
        call: Callable[[], StageResult] | None = None,
    ) -> Step:
        """Return the step that calls a function of the Python API, in a process of its own unless `call` is given."""
        words = words_of(options_taken(function), values)
        command = shlex.join(["edgetune", function.__name__, *words])
        return cls(title, command, call or (lambda: apart(function, **values)))


def run_chain(steps: Iterable[Step], *, dry_run: bool) -> StageResult | None:
    """Run steps, or only tell them; return the last stage, None where nothing ran.

    Raises:
        EdgetuneError: a step failed.
    """
    stage = None
    listed = list(steps)
    for number, step in enumerate(listed, start=1):
        log.info(f"\n[{number}/{len(listed)}] {step.title}")
        if step.command:
            log.info(f"$ {step.command}")
        if not dry_run:
            started = monotonic()
            stage = step.call()
            state = "unchanged, kept" if stage.skipped else f"written in {monotonic() - started:.0f} s"
            log.info(f"{stage.folder}: {state}")
    return stage
