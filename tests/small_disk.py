"""A disk that fills up: a file system of a few hundred kilobytes, in a namespace of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def run_on_small_disk(
    disk: Path, command: Sequence[str | Path], *, kilobytes: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command with a small file system mounted at `disk`; its standard output ends with what is left there.

    Skips the test where the system lets no one mount in a namespace of their own.
    """
    disk.mkdir()
    unshare = shutil.which("unshare")
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$0"'
    if (
        unshare is None
        or subprocess.run([unshare, "-rm", "sh", "-c", mount, disk], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system lets no one mount a small file system in a namespace of their own")
    script = f'{mount} && "$@"; code=$?; ls "$0"; exit $code'
    return subprocess.run(
        [unshare, "-rm", "sh", "-c", script, disk, *command], capture_output=True, text=True, check=False
    )
