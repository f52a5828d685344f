"""Extension of griffe, with which the Python reference shows a verb's function as it is called.

In the source such a function takes one dataclass of options; `edgetune_core.options.takes` makes keyword arguments of
its fields and adds their help to the docstring, which only shows when the module is imported.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import griffe


class VerbSignatures(griffe.Extension):
    """Replaces signature and docstring of every function that is decorated with `@takes(...)`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Look at one function that griffe has read."""
        if not any(str(decorator.value).startswith("takes(") for decorator in func.decorators):
            return
        made = getattr(import_module(func.module.path), func.name)
        func.decorators = []
        func.docstring = griffe.Docstring(inspect.getdoc(made) or "", parent=func, parser="google")
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    parameter.name,
                    annotation=str(parameter.annotation),
                    kind=griffe.ParameterKind[parameter.kind.name.lower()],
                    default=_default(parameter),
                )
                for parameter in inspect.signature(made).parameters.values()
            )
        )


def _default(parameter: inspect.Parameter) -> str | None:
    """Return a default as source text; a dataclass's signature writes those that are made anew as `<factory>`."""
    if parameter.default is parameter.empty:
        return None
    text = repr(parameter.default)
    return "{}" if text == "<factory>" else text
