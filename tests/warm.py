"""Processes that start with torch and transformers imported, which takes a fresh one ten seconds and a fork none.

A server imports what training and export import and forks for each command. `WarmPython` writes a `python` and an
`edgetune` that ask it: to who starts them they are processes like any other, with their own arguments, environment,
standard streams, Ctrl-C and exit code. What could tell the difference (`-c`, a module that has to be light, another
setting of a library that is read at import, another limit or file system) gets a fresh interpreter, and so does what a
test kills or looks into (`processes.start`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

FRESH = Path(sys.prefix, "bin", "python")
"""The interpreter of this environment, whatever `sys.executable` has become."""

MODULES = ("edgetune", "edgetune_core.processes", "edgetune_core.torch_runner.worker", "torch.distributed.run")
"""Programs that most often end up importing torch and that no test holds to be light."""

IMPORTS = (
    *("accelerate", "bitsandbytes", "onnx", "onnx_ir", "peft", "safetensors.torch", "torch", "torch.utils.tensorboard"),
    *("transformers", "transformers.models.auto.modeling_auto", "transformers.trainer"),
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
)
"""Other people's modules only: each command imports this project's own."""

READ_AT_IMPORT = (
    "ACCELERATE",
    "CUDA",
    "HF_",
    "KMP",
    "LANG",
    "LC_",
    "LD_PRELOAD",
    "MKL",
    "OMP",
    "OPENBLAS",
    "PYTHON",
    "TORCH_",
)
"""First letters of variables that the imported libraries or the interpreter read once."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class WarmPython:
    """A folder with programs `python` and `edgetune` whose processes start warm, while the context lasts.

    Example:
        with WarmPython(folder) as warm:
            subprocess.run([warm.python, "-m", "edgetune", "train", "--help"], check=True)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "python"

    def __enter__(self) -> WarmPython:
        """Write the programs and start the server; a command waits until it has imported everything."""
        client = f'exec "{sys.executable}" -IS "{__file__}" "{self.folder / "socket"}"'
        for name, words in (("python", ""), ("edgetune", " -m edgetune")):
            program = self.folder / name
            program.write_text(f'#!/bin/sh\n{client}{words} "$@"\n')
            program.chmod(0o755)
        for other in Path(sys.executable).parent.iterdir():
            with suppress(FileExistsError):
                (self.folder / other.name).symlink_to(other)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "socket"))
            listener.listen(64)
            # It ends when its standard input does, which is when this process ends in whatever way.
            self._server = subprocess.Popen(
                [sys.executable, __file__, "--serve", str(listener.fileno()), self.python],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server; commands that run go on."""
        self._server.kill()
        self._server.wait()


def _surroundings() -> dict[str, Any]:
    """Return what a process inherits and a fork of another one cannot take on."""
    import resource

    limits = [
        resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name.startswith("RLIMIT")
    ]
    spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "user", "net", "pid")]
    umask = os.umask(0)
    os.umask(umask)
    settings = {name: value for name, value in os.environ.items() if name.startswith(READ_AT_IMPORT)}
    for library in ("MKL", "OPENBLAS"):  # they take over what OpenMP is told
        settings.setdefault(f"{library}_NUM_THREADS", settings.get("OMP_NUM_THREADS", ""))
    return {"settings": settings, "limits": [list(limit) for limit in limits], "spaces": spaces, "umask": umask}


def ask(address: str, words: list[str]) -> None:
    """Run a command in a fork of the server, or in this process if that would not be the same; does not return."""
    options = [word for word in words[:1] if word == "-u"]
    named = words[len(options) :]
    if named[:1] == ["-m"] and named[1:2] and named[1] in MODULES:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
            for stream in range(3):
                os.fstat(stream)
            server.connect(address)
            _ask(server, named[1:])
    os.execv(sys.executable, [sys.executable, *words])


def _ask(server: socket.socket, words: list[str]) -> None:
    ignored = [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    call = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ), "ignored": ignored}
    call |= {"surroundings": _surroundings(), "cores": list(os.sched_getaffinity(0))}
    socket.send_fds(server, [json.dumps(call).encode() + b"\n"], [0, 1, 2])
    answers = server.makefile()
    child = int(answers.readline())
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return
    for number in FORWARDED:
        if number not in ignored:
            signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(listening: int, python: str) -> None:
    """Answer calls until standard input ends; returns in a fork, as the process that has to run the command."""
    import gc
    import importlib
    import select

    surroundings = _surroundings()
    with socket.socket(fileno=listening) as listener:
        for module in IMPORTS:
            with suppress(ImportError):
                importlib.import_module(module)
        sys.executable = python
        gc.freeze()
        while True:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            ready, _, _ = select.select([listening, 0], [], [])
            if 0 in ready:
                os._exit(0)
            caller, _ = listener.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                break
            caller.close()
    if not (call := _receive(caller, surroundings)):
        os._exit(0)
    if child := os.fork():
        _attend(caller, child)
    _become(call, caller)


def _receive(caller: socket.socket, surroundings: dict[str, Any]) -> dict[str, Any]:
    message, streams, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += caller.recv(1 << 20)
    call: dict[str, Any] = json.loads(message)
    if call["surroundings"] != surroundings:
        caller.sendall(b"0\n")
        return {}
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return call


def _attend(caller: socket.socket, child: int) -> None:
    """Tell the caller how its child ended; a caller that is killed takes it along."""
    import select

    os.closerange(0, 3)
    caller.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, caller.fileno()], [], [])
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    with suppress(OSError):
        caller.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    os._exit(0)


def _become(call: dict[str, Any], caller: socket.socket) -> None:
    import random
    import runpy

    caller.close()
    for number in FORWARDED:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in call["ignored"] else usual)
    os.sched_setaffinity(0, call["cores"])
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv[:] = call["words"]
    sys.path[0] = call["folder"]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    _end(lambda: runpy.run_module(call["words"][0], run_name="__main__", alter_sys=True))


def _end(program: Callable[[], object]) -> NoReturn:
    """Run a program and end as the interpreter does, without taking a few thousand modules apart one by one."""
    import atexit
    import threading

    code: object = 0
    try:
        program()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code & 0xFF)


def main(words: Sequence[str]) -> None:
    """Serve, or ask a server."""
    if words[0] == "--serve":
        serve(int(words[1]), words[2])
    else:
        ask(words[0], list(words[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
