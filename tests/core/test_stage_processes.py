"""What a killed, interrupted, concurrent or unlucky run leaves on disk: real processes, signals and file systems."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgetune_core.stage import run_stage
from edgetune_runtime.errors import InputError
from processes import start
from small_disk import run_on_small_disk


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


CHILD = """
    import sys, time
    from pathlib import Path
    from edgetune_core.stage import run_stage
    from edgetune_runtime.signals import sigterm_raises

    def build(work):
        (work / "weights.bin").write_bytes(b"x" * 4096)
        print("half", flush=True)
        {body}
        return {{}}

    with sigterm_raises():
        run_stage("merge", Path(sys.argv[1]), inputs={{}}, settings={{}}, build=build, force=True)
"""


def child(output: Path, body: str, **options: Any) -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD).format(body=textwrap.indent(textwrap.dedent(body), "    ").strip())
    process = start([sys.executable, "-c", code, output], stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


@pytest.mark.parametrize("older", [False, True])
def test_a_killed_process_leaves_nothing_that_a_later_stage_accepts(tmp_path: Path, older: bool) -> None:
    output = tmp_path / "out"
    if older:
        run_stage("merge", output, inputs={}, settings={"older": True}, build=lambda work: {"older": True})
    process = child(output, "time.sleep(600)")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert output.exists() == older
    assert [path.parent.name for path in tmp_path.rglob("manifest.json")] == (["out"] if older else [])
    again = run_stage("merge", output, inputs={}, settings={}, build=lambda work: {"again": True})
    assert again.manifest["files"] == {}
    assert everything(tmp_path) == {"out", "out/manifest.json"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_process_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    process = child(tmp_path / "out", "time.sleep(600)")
    process.send_signal(number)
    process.wait()
    assert everything(tmp_path) == set()


def test_a_second_sigterm_does_not_stop_the_cleaning_up(tmp_path: Path) -> None:
    slow = """
        try:
            print("waiting", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            print("cleaning", flush=True)
            sys.stdin.readline()
            raise
    """
    process = child(tmp_path / "out", slow, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.terminate()
    assert process.stdout.readline() == "cleaning\n"
    process.terminate()
    process.communicate("go on\n")
    assert everything(tmp_path) == set()


def test_what_a_killed_run_left_goes_when_the_next_one_finds_nothing_to_do(tmp_path: Path) -> None:
    run_stage("merge", tmp_path / "out", inputs={}, settings={}, build=lambda work: {})
    process = child(tmp_path / "out", "time.sleep(600)")  # as with --force
    process.kill()
    process.wait()
    assert (tmp_path / ".out.partial").is_dir()
    assert run_stage("merge", tmp_path / "out", inputs={}, settings={}, build=lambda work: {}).skipped
    assert everything(tmp_path) == {"out", "out/manifest.json"}


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    process = child(tmp_path / "out", "time.sleep(600)")
    try:
        with pytest.raises(InputError, match="another edgetune process"):
            run_stage("merge", tmp_path / "out", inputs={}, settings={}, build=lambda work: {})
    finally:
        process.kill()
        process.wait()
    assert not run_stage("merge", tmp_path / "out", inputs={}, settings={}, build=lambda work: {}).skipped


FULL_DISK = """
    import sys
    from pathlib import Path
    import numpy
    import torch
    from safetensors.torch import save_file
    from edgetune_core.stage import run_stage

    def plain(work): (work / "weights.bin").write_bytes(b"x" * 1_000_000)
    def numpy_file(work): numpy.zeros(25_000_000, numpy.uint8).tofile(work / "weights.data")
    def torch_file(work): torch.save(torch.zeros(500_000), work / "weights.pt")
    def safetensors_file(work): save_file({"w": torch.zeros(500_000)}, work / "weights.safetensors")

    output = Path(sys.argv[1]) / "out"
    for build in (plain, numpy_file, torch_file, safetensors_file):
        try:
            run_stage("merge", output, inputs={}, settings={}, build=build)
        except OSError as error:
            print(build.__name__, error.errno, error.filename == str(output.parent), sorted(output.parent.iterdir()))
"""


def test_a_full_disk_is_told_as_such_whatever_the_library_raised(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(disk)]
    done = run_on_small_disk(disk, command, kilobytes=256)
    expected = [f"{name} {errno.ENOSPC} True []" for name in ("plain", "numpy_file", "torch_file", "safetensors_file")]
    assert done.stdout.splitlines() == expected, done.stderr


TOO_LARGE = """
    import resource, shutil, sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from edgetune_core.stage import run_stage

    folder = Path(sys.argv[1])
    (folder / "source").write_bytes(b"x" * 1_000_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    def plain(work): (work / "weights.bin").write_bytes(b"x" * 1_000_000)
    def copied(work): shutil.copyfile(folder / "source", work / "copy")
    def safetensors_file(work): save_file({"w": torch.zeros(500_000)}, work / "weights.safetensors")

    for build in (plain, copied, safetensors_file):
        try:
            run_stage("merge", folder / "out", inputs={}, settings={}, build=build)
        except OSError as error:
            print(build.__name__, error.errno, error.filename == str(folder), sorted(folder.iterdir()))
"""


def test_a_limit_on_file_sizes_is_told_of_the_output_and_not_of_what_was_copied(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(TOO_LARGE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    left = [tmp_path / "source"]
    expected = [f"{name} {errno.EFBIG} True {left}" for name in ("plain", "copied", "safetensors_file")]
    assert done.stdout.splitlines() == expected, done.stderr
