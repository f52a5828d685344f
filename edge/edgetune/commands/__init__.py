"""One module a verb: parse the arguments, call the stage, print its result.

What a verb of another package is made with: `verb` gives a function the options of a dataclass and those that every
verb has, `Console` is where it writes.
"""

from __future__ import annotations

from edgetune.commands._common import Console, verb

__all__ = ["Console", "verb"]
