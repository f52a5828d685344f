"""A function of the Python API in a process of its own: its memory goes with it, and its crash is an error here.

A fresh interpreter, and not `multiprocessing`: that would import the caller's main module again.
"""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from edgetune_runtime.errors import EdgetuneError
from edgetune_runtime.signals import Terminated, sigterm_raises, wait_for

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130
"""Exit code of Ctrl-C."""


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a process of its own; what it prints goes to stderr.

    Args:
        function: found again by its module and name.
        args: its arguments, which can be pickled.
        kwargs: its keyword arguments, likewise.

    Raises:
        EdgetuneError: what the function raised, or the process ended without an answer.
        KeyboardInterrupt: Ctrl-C or, as `Terminated`, SIGTERM ended this process or that one, which has cleaned up.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, reply = Path(folder) / "call", Path(folder) / "reply"
        call.write_bytes(pickle.dumps((function.__module__, function.__qualname__, args, kwargs)))
        command = [sys.executable, "-m", "edgetune_core.processes", str(call), str(reply)]
        code = wait_for(subprocess.Popen(command, stdout=sys.stderr))
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code == Terminated.exit_code:
            raise Terminated
        if not reply.is_file():
            name = f"{function.__module__}.{function.__qualname__}"
            raise EdgetuneError(f"{name}: its process ended with code {code}", hint="its output says why")
        kind, value = pickle.loads(reply.read_bytes())
    if kind == "error":
        raise value
    result: R = value
    return result


def _serve(call: Path, reply: Path) -> int:
    module, name, args, kwargs = pickle.loads(call.read_bytes())
    try:
        with sigterm_raises():
            outcome = ("result", getattr(importlib.import_module(module), name)(*args, **kwargs))
    except (EdgetuneError, OSError) as error:
        outcome = ("error", error)
    except KeyboardInterrupt as end:
        return Terminated.exit_code if isinstance(end, Terminated) else INTERRUPTED
    reply.write_bytes(pickle.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(_serve(*map(Path, sys.argv[1:])))
