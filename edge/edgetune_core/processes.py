"""A function of the Python API in a process of its own: its memory goes with it, and its crash is an error here.

A fresh interpreter, and not `multiprocessing`: that would import the caller's main module again.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from edgetune_runtime.errors import EdgetuneError
from edgetune_runtime.signals import Terminated, end_once, wait_for

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130
"""Exit code of Ctrl-C."""

_STDERR = 2  # sys.stderr may be a notebook's, which no process can write to


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a process of its own; what it prints, and remarks, goes to stderr.

    Args:
        function: found again by its module and name.
        args: its arguments, which can be pickled.
        kwargs: its keyword arguments, likewise.

    Raises:
        EdgetuneError: what the function raised, or the process ended without an answer.
        KeyboardInterrupt: Ctrl-C or, as `Terminated`, SIGTERM ended this process or that one, which has cleaned up.
        ImportError: a library that it needs is not installed.
    """
    level = logging.getLogger("edgetune").getEffectiveLevel()
    with tempfile.TemporaryDirectory() as folder:
        call, reply = Path(folder) / "call", Path(folder) / "reply"
        call.write_bytes(pickle.dumps((level, function.__module__, function.__qualname__, args, kwargs)))
        code = run_patiently([sys.executable, "-m", "edgetune_core.processes", str(call), str(reply)])
        if code in (INTERRUPTED, Terminated.exit_code):
            raise Terminated if code == Terminated.exit_code else KeyboardInterrupt
        if not reply.is_file():
            name = f"{function.__module__}.{function.__qualname__}"
            raise EdgetuneError(f"{name}: its process ended with code {code}", hint="its output says why")
        kind, value = pickle.loads(reply.read_bytes())
    if kind == "error":
        raise value
    result: R = value
    return result


def run_patiently(command: Sequence[str]) -> int:
    """Run a process to its end, its output on stderr, and return its exit code.

    After Ctrl-C or SIGTERM it is given the time to clean up.
    """
    # OpenMP threads that spin for long make training several times slower when anything else wants a core; threads
    # that never spin make it a fifth slower when nothing does.
    environment = {"GOMP_SPINCOUNT": "20000"} | os.environ
    return wait_for(subprocess.Popen(command, stdout=_STDERR, env=environment))


def _serve(call: Path, reply: Path) -> int:
    end_once()
    try:
        level, module, name, args, kwargs = pickle.loads(call.read_bytes())
        logging.basicConfig(format="%(message)s")
        logging.getLogger("edgetune").setLevel(level)
        outcome = ("result", getattr(importlib.import_module(module), name)(*args, **kwargs))
    except (EdgetuneError, OSError, ImportError) as error:
        outcome = ("error", error)
    except KeyboardInterrupt as end:
        return Terminated.exit_code if isinstance(end, Terminated) else INTERRUPTED
    reply.write_bytes(pickle.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(_serve(*map(Path, sys.argv[1:])))
