"""Finding what must not be in a picture: faces, plates, screens with text. Each finder is a plugin.

A redactor is a function without arguments that returns an object with

    def find(self, image: PIL.Image.Image) -> Sequence[Region]: ...

which gets an upright RGB picture and returns boxes xyxy in its pixels. A package offers one through an entry point:

    [project.entry-points."edgetune.redactors"]
    plates = "my_package.plates:PlateFinder"
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

from edgetune_runtime.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

GROUP = "edgetune.redactors"
_BUILT_IN = {"faces": "edgetune_data.faces:FaceFinder", "text": "edgetune_data.writing:TextFinder"}


@dataclass(frozen=True)
class Region:
    """One region that should not be there: xyxy in pixels of the upright picture, what it is, and how sure."""

    box: tuple[float, float, float, float]
    kind: str
    score: float = 1.0


class Redactor(Protocol):
    """What a plugin's function returns."""

    def find(self, image: Image.Image) -> Sequence[Region]:
        """Return the regions of an upright RGB picture that should not be there."""


def redactor_names() -> list[str]:
    """Return the names of the installed redactors, the built-in ones first."""
    return list(dict.fromkeys([*_BUILT_IN, *sorted(entry.name for entry in entry_points(group=GROUP))]))


def load_redactor(name: str) -> Redactor:
    """Return the redactor with this name; an installed plugin goes before a built-in one.

    Raises:
        InputError: there is none, or it cannot be loaded.
        ModuleNotFoundError: a library that it needs is missing.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            target = entry.value
            break
    else:
        if name not in _BUILT_IN:
            near = difflib.get_close_matches(name, redactor_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(redactor_names())}"
            raise InputError(f"no redactor is called {name!r}", hint=hint)
        target = _BUILT_IN[name]
    module, _, attribute = target.partition(":")
    made: Redactor = getattr(import_module(module), attribute)()
    if not callable(getattr(made, "find", None)):
        raise InputError(f"the redactor {name!r} ({target}) has no method 'find'")
    return made
