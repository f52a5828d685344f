"""vLLM started for one bundle: what it cannot load is refused before it tries, and it is waited for until it is up."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, InputError, MissingDependency

EXECUTABLE = "EDGETUNE_VLLM"
"""Variable with the path of `vllm`, where it is in an environment of its own."""
END_SECONDS = 30.0
"""How long it may take to end."""
START_SECONDS = 1800.0
"""How long it may take to load a model and to record its graphs."""


def command(bundle: Bundle, name: str, port: int, more: Sequence[str] = ()) -> list[str]:
    """The command that serves a bundle in vLLM.

    Args:
        bundle: a checkpoint with a manifest.
        name: what clients call the model.
        port: of 127.0.0.1, to listen on.
        more: further words for `vllm serve`.

    Raises:
        InputError: it is no checkpoint, or one that vLLM refuses.
        MissingDependency: there is no `vllm`.
    """
    require_read(bundle)
    beside = Path(sys.executable).with_name("vllm")
    program = os.environ.get(EXECUTABLE) or shutil.which("vllm") or (str(beside) if beside.is_file() else None)
    if program is None or shutil.which(program) is None:
        raise MissingDependency("vllm is not installed", hint=f"install it, and name its program in {EXECUTABLE}")
    return [
        program,
        "serve",
        str(bundle.folder),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", name),
        *("--max-model-len", str(bundle.limits.max_length), "--limit-mm-per-prompt", '{"image": 1, "video": 0}'),
        # The checkpoint's own settings of sampling may hold a penalty, which a greedy answer must not have.
        *("--generation-config", "vllm"),
        *more,
    ]


def require_read(bundle: Bundle) -> None:
    """Refuse a bundle that vLLM does not read.

    Raises:
        InputError: it is no checkpoint, or its manifest says that vLLM refuses it.
    """
    told = bundle.manifest["result"]["bundle"].get("readers")
    if "server" not in bundle.purposes or told is None:
        raise InputError(
            f"{bundle.folder}: is no checkpoint that vLLM could load",
            hint="export --format compressed-tensors, gptq or awq, with --for server",
        )
    for reader, why in told["refuse"].items():
        if reader.startswith("vLLM"):
            raise InputError(f"{bundle.folder}: {reader} refuses it: {why['why']}", hint=why.get("hint"))


class Vllm:
    """`vllm serve` while the `with` block runs.

    Attributes:
        url: its address.
        key: that it asks for.

    Raises:
        InputError: as `command`.
        MissingDependency: as `command`.
        BundleError: it ended before it was up; what it said is on stderr.
    """

    def __init__(self, bundle: Bundle, name: str, more: Sequence[str] = ()) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._words = command(bundle, name, self._port, more)
        self._bundle = bundle
        self.key = secrets.token_hex(16)  # or every user of this machine could ask it
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Vllm:
        """Start it and wait until it answers."""
        variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"} | os.environ | {"VLLM_API_KEY": self.key}
        # In a session of its own it does not get this terminal's Ctrl-C, and is ended after its answers.
        self._process = subprocess.Popen(self._words, env=variables, stdout=sys.stderr, start_new_session=True)
        until = time.monotonic() + START_SECONDS
        try:
            while not self._up():
                if (code := self._process.poll()) is not None:
                    raise BundleError(f"{self._bundle.folder}: vllm serve left with exit code {code}, see above")
                if time.monotonic() > until:
                    raise BundleError(f"{self._bundle.folder}: vllm serve is not up after {START_SECONDS:.0f} s")
                time.sleep(0.5)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._end()

    def _up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _end(self) -> None:
        try:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        finally:  # its own children too, which hold the model
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
