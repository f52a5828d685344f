"""Starting vLLM for a bundle: refusals, and the life of the program, for which a server of ours stands in here.

`make test-vllm` does the same with vLLM itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetune_runtime.bundle import Bundle
from edgetune_runtime.errors import BundleError, InputError, MissingDependency
from edgetune_runtime.serve.vllm import EXECUTABLE, Vllm, command
from served import Asked, Server
from shared import once

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")


@pytest.fixture(scope="module")
def checkpoint(qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A symmetric bundle for servers."""
    return once(tmp_path_factory, "for_vllm", lambda folder: _export(qwen3_vl, folder, "--symmetric"))


def _export(model: Path, folder: Path, *calibrate: str) -> None:
    from edgetune.cli import cli
    from train.conftest import write_records

    weights = folder.with_name(f"{folder.name}.set")
    records = write_records(folder.with_name(f"{folder.name}.data"))
    paths = ["--checkpoint", str(model), "--data", str(records), "--output", str(weights), "--head", "16"]
    cli.main(["calibrate", *paths, "--method", "rtn", "--group-size", "32", *calibrate], standalone_mode=False)
    paths = ["--checkpoint", str(model), "--weights", str(weights), "--output", str(folder)]
    cli.main(["export", *paths, "--format", "gptq", "--for", "server"], standalone_mode=False)


def test_the_command_bounds_what_the_bundle_bounds(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTABLE, sys.executable)
    bundle = Bundle.load(checkpoint)
    words = command(bundle, "cups", 8001, ["--dtype", "float16"])
    assert words[:3] == [sys.executable, "serve", str(bundle.folder)]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--max-model-len"] == str(bundle.limits.max_length)
    assert (options["--served-model-name"], options["--port"], options["--dtype"]) == ("cups", "8001", "float16")


def test_what_vllm_does_not_read_is_refused_before_it_starts(
    qwen3_vl: Path, tiny_bundle: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXECUTABLE, sys.executable)
    with pytest.raises(InputError, match="no checkpoint that vLLM could load") as caught:
        command(Bundle.load(tiny_bundle), "it", 1)
    assert "--for server" in str(caught.value.hint)
    _export(qwen3_vl, tmp_path / "asymmetric")
    with pytest.raises(InputError, match=r"vLLM 0\.32\.0 refuses it: zero points"):
        command(Bundle.load(tmp_path / "asymmetric"), "it", 1)
    monkeypatch.setenv(EXECUTABLE, str(tmp_path / "nothing"))
    with pytest.raises(MissingDependency, match="vllm is not installed"):
        command(Bundle.load(checkpoint), "it", 1)


def stand_in(folder: Path, code: str) -> Path:
    """A program in vLLM's place."""
    program = folder / "vllm"
    program.write_text(f"#!{sys.executable}\nimport os, subprocess, sys\n{code}\n")
    program.chmod(0o755)
    return program


def test_a_program_that_fails_is_told(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTABLE, str(stand_in(tmp_path, "sys.exit(7)")))
    with pytest.raises(BundleError, match="vllm serve left with exit code 7"), Vllm(Bundle.load(checkpoint), "it"):
        pass


def test_the_server_waits_for_the_program_and_ends_it(
    checkpoint: Path, tiny_bundle: Path, asked: list[Asked], tmp_path: Path
) -> None:
    """What is asked for reaches the program; its own bundle is another one, so answers say who gave them."""
    code = (
        "words = dict(zip(sys.argv[3::2], sys.argv[4::2]))\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "name = words['--served-model-name']\n"
        "ours = [sys.executable, '-m', 'edgetune_runtime.cli', 'serve', name + '=' + "
        f"{str(tiny_bundle)!r}, '--port', words['--port']]\n"
        "os.execv(ours[0], ours)"
    )
    env = {EXECUTABLE: str(stand_in(tmp_path, code))}
    with Server(f"cups={checkpoint}", "--engine", "vllm", env=env) as running:
        told = running.connect().detect(*asked[0]).json
        assert told["model"] == "cups" and told["status"] == "found"
        pid = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{pid}").exists()
        running.end()
        assert running.wait() == 0
    assert not Path(f"/proc/{pid}").exists()
