"""`edgetune demo`: the whole chain on the tiny example model."""

from __future__ import annotations

from time import monotonic
from typing import Any

from edgetune.api.demo import demo
from edgetune.commands._common import Console, verb
from edgetune.commands._measure import say_tables


@verb(demo)
def command(console: Console, **options: Any) -> None:
    started = monotonic()
    made = demo(**options)
    if made.results is None:
        return
    console.line()
    say_tables(console, made.results)
    console.note(f"\nDone in {(monotonic() - started) / 60:.1f} min. Open {made.page} in a browser.")
    console.result({"page": made.page, **made.results.to_dict()})
