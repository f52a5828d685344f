"""Processes that hold a peer each, asked in turns, and what the system says of them: Linux only."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Name = TypeVar("Name")


class Failed(Exception):
    """A peer that did not load or answer."""


def turns(peers: Sequence[Name], rounds: int) -> Iterator[tuple[int, Name]]:
    """Who is asked in which round: each begins another one, so that none always follows the same peer."""
    for number in range(rounds):
        start = number % len(peers) if peers else 0
        for peer in (*peers[start:], *peers[:start]):
            yield number, peer


def peak_mb(pids: Sequence[int], proc: Path = Path("/proc")) -> float:
    """The most that was resident of these processes, added up, in MB (10^6 bytes).

    `VmHWM` belongs to the program that runs now; the system's other account would charge it with its launcher's size.
    """
    return sum(_peak(proc / str(pid) / "status") for pid in pids)


def _peak(status: Path) -> float:
    for line in status.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024 / 1e6
    raise ValueError(f"{status}: has no line VmHWM, which a process has that still runs")


def cpu_seconds(pids: Sequence[int], proc: Path = Path("/proc")) -> float:
    """Processor seconds that these processes have used so far, in user and kernel mode."""
    ticks = 0
    for pid in pids:
        # The command's name, field 2, may itself hold spaces and parentheses.
        fields = (proc / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that holds one peer.

    Args:
        python: the interpreter of its environment.
        script: the worker.
        settings: what the worker is told.
        variables: its environment variables.
        log: where its standard error is added to.

    Raises:
        Failed: it ended before it had loaded.
    """

    def __init__(
        self, python: Path, script: Path, settings: dict[str, Any], variables: dict[str, str], log: Path
    ) -> None:
        self._log = log
        self.started = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [str(python), str(script), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=variables,
            )
        self.told = self._line()
        self.loaded_s = time.perf_counter() - self.started

    def ask(self, picture: Path, words: Sequence[str], tokens: int) -> dict[str, Any]:
        """Answer all phrases about a picture: what the worker tells, with `wall_s` and `cpu_s`.

        Raises:
            Failed: it did not.
        """
        assert self._process.stdin is not None
        used, began = cpu_seconds(self.told["pids"]), time.perf_counter()
        self._process.stdin.write(json.dumps({"picture": str(picture), "words": list(words), "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        told = self._line()
        wall = time.perf_counter() - began
        if "error" in told:
            raise Failed(str(told["error"]))
        return told | {"wall_s": wall, "cpu_s": cpu_seconds(self.told["pids"]) - used}

    def peak_mb(self) -> float:
        """The most that was resident so far."""
        return peak_mb(self.told["pids"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no word"]
            raise Failed(f"left with {self._process.returncode}: {lines[-1][:300]}")
        told: dict[str, Any] = json.loads(line)
        return told
