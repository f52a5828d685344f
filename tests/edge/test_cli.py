"""The command line's surface: verbs, suggestions, configuration files, exit codes, and what it does not import."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgetune import __version__
from edgetune.cli import VERBS, cli
from edgetune.commands._common import Console, Program, verb
from edgetune_core.options import StageOptions, option
from edgetune_runtime.errors import GateFailed, InputError, MissingDependency

HEAVY = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "peft", "PIL", "tokenizers", "tqdm")


@dataclass(frozen=True, kw_only=True)
class ProbeOptions(StageOptions):
    """One option of each kind."""

    checkpoint: Path = option(help="A folder.")
    rank: int = option(8, help="A number.")
    learning_rate: float = option(1e-4, help="A number.")
    precision: Literal["fp32", "int8", "int4"] = option("fp32", help="One of several.")
    targets: tuple[str, ...] = option((), help="Several.", flag="--target")
    bf16: bool = option(True, help="Yes or no.")


@verb(ProbeOptions)
def probe(console: Console, **arguments: object) -> None:
    """A verb with one option of each kind."""
    console.line("for people")
    console.note("in between")
    console.result(arguments)


def invoke(command: click.Command, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def parsed(*arguments: str) -> dict[str, object]:
    result = invoke(probe, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert isinstance(values, dict)
    return values


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgetune", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_verb_with_a_line() -> None:
    result = run("--help")
    assert result.returncode == 0
    listed = [line.split(maxsplit=1) for line in result.stdout.partition("Verbs:")[2].splitlines()[1 : len(VERBS) + 1]]
    assert [name for name, _ in listed] == list(VERBS)
    assert [text for _, text in listed] == list(VERBS.values())


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_and_the_common_options(name: str) -> None:
    result = invoke(cli, name, "--help")
    assert result.exit_code == 0, result.stderr
    assert "--json" in result.stdout
    assert "--config" in result.stdout
    assert ("--dry-run" in result.stdout) == (
        name in {"label", "train", "grpo", "merge", "calibrate", "export", "eval", "bench", "tune-budget", "demo"}
    )


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tran"], *([name, "--help"] for name in VERBS)])
def test_the_command_line_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from edgetune.cli import cli
try:
    cli({arguments})
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    modules = {name.partition(".")[0] for name in done.stderr.split()}
    assert "edgetune" in modules
    assert modules.isdisjoint(set(HEAVY) - ({"tqdm"} if "--help" in arguments[1:] else set()))


def test_version() -> None:
    assert run("--version").stdout == f"edgetune, version {__version__}\n"


def test_no_arguments_show_the_help_and_count_as_wrong_usage() -> None:
    result = run()
    assert result.returncode == 2
    assert "Verbs:" in result.stderr


def test_a_mistyped_verb_gets_a_suggestion() -> None:
    result = run("exprot")
    assert result.returncode == 2
    assert result.stderr == "error: No such command 'exprot'. Did you mean 'export'?\nhint: see edgetune --help\n"


def test_a_mistyped_option_gets_a_suggestion() -> None:
    result = invoke(probe, "--chekpoint", "x")
    assert result.exit_code == 2
    assert "Did you mean '--checkpoint'?" in result.stderr


def test_a_mistyped_choice_gets_a_suggestion() -> None:
    result = invoke(probe, "--checkpoint", "x", "--precision", "in4")
    assert result.exit_code == 2
    assert "'in4' is not one of fp32, int8, int4. Did you mean 'int4'?" in result.stderr


def test_a_missing_option_is_named() -> None:
    result = invoke(probe)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Missing option '--checkpoint'.\n")


def test_json_is_all_there_is_on_stdout() -> None:
    result = invoke(probe, "--checkpoint", "x", "--json", "--dry-run")
    assert json.loads(result.stdout)["dry_run"] is True
    assert result.stderr == "in between\n"
    assert invoke(probe, "--checkpoint", "x").stdout == "for people\n"


def test_a_config_gives_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text(
        'checkpoint = "base"\nrank = 16\nlearning-rate = 2e-5\nprecision = "int4"\n'
        'target = ["q_proj", "v_proj"]\nbf16 = false\nforce = true\n'
    )
    expected = {
        "checkpoint": "base",
        "rank": 16,
        "learning_rate": 2e-5,
        "precision": "int4",
        "targets": ["q_proj", "v_proj"],
        "bf16": False,
        "force": True,
        "dry_run": False,
    }
    assert parsed("--config", str(config)) == expected
    assert parsed("--config", str(config), "--rank", "4", "--bf16") == {**expected, "rank": 4, "bf16": True}
    assert parsed("--rank", "4", "--config", str(config)) == {**expected, "rank": 4}


def test_a_config_key_may_be_written_with_underscores(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("learning_rate = 0.5\ndry_run = true\n")
    values = parsed("--checkpoint", "x", "--config", str(config))
    assert (values["learning_rate"], values["dry_run"]) == (0.5, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak = 8", "unknown key 'rnak'\nhint: did you mean 'rank'?"),
        ("colour = 8", "unknown key 'colour'\nhint: known keys: bf16, checkpoint, dry-run"),
        ('config = "other.toml"', "unknown key 'config'"),
        ("rank = 8.5", "key 'rank': '8.5' is not a whole number"),
        ("rank = true", "key 'rank': 'true' is not a whole number"),
        ("rank = [8]", "key 'rank' takes one value, not [8]"),
        ("[rank]\nvalue = 8", "key 'rank' takes one value"),
        ('target = "q_proj"', "key 'target' takes a list"),
        ('precision = "int44"', "key 'precision': 'int44' is not one of fp32, int8, int4. Did you mean 'int4'?"),
        ("rank = ", "not valid TOML"),
        ('"rank" = "\udcff"', "not valid TOML"),
    ],
)
def test_a_wrong_config_is_refused_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "wrong.toml"
    config.write_bytes(text.encode(errors="surrogateescape"))
    result = invoke(probe, "--checkpoint", "x", "--config", str(config))
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {config}: {message}")


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    result = invoke(probe, "--checkpoint", "x", "--config", str(tmp_path / "none.toml"))
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def failing(error: BaseException) -> Program:
    def function(console: Console) -> None:
        raise error

    return verb()(function)


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (InputError("data.jsonl:3: no image", hint="add one"), 2, "error: data.jsonl:3: no image\nhint: add one\n"),
        (GateFailed("Acc@0.5 fell by 3 points"), 1, "error: Acc@0.5 fell by 3 points\n"),
        (MissingDependency("no peft", hint="pip install peft"), 3, "error: no peft\nhint: pip install peft\n"),
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.jsonl"), 2, "error: a.jsonl: No such file\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error: BaseException, code: int, stderr: str) -> None:
    result = invoke(failing(error), "--json")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", stderr)


def test_a_full_disk_is_one_line() -> None:
    def write(console: Console) -> None:
        with open("/dev/full", "w") as stream:
            stream.write("x" * 100_000)

    result = invoke(verb()(write))
    assert result.exit_code == 3
    assert result.stderr.startswith("error: no space left on the disk\nhint: ")


def test_a_missing_package_is_told_with_the_command_that_installs_it() -> None:
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from edgetune.commands._common import verb\n"
        "def function(console): import peft\n"
        "verb()(function)([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    error, hint = done.stderr.splitlines()
    assert error == "error: the Python package 'peft' is not installed"
    assert hint.startswith("hint: pip install ") and hint.endswith('[train]"')


def test_an_unexpected_error_keeps_its_traceback() -> None:
    result = invoke(failing(ZeroDivisionError("bug")))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "edgetune", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""


@pytest.fixture
def tabled() -> Callable[..., Result]:
    def table(*arguments: str) -> Result:
        def function(console: Console) -> None:
            console.table([{"name": "int4", "acc": 0.912345, "n": 10}, {"name": "fp32 long", "acc": None, "n": 2000}])
            console.result({"acc": np.float32(0.5), "boxes": np.zeros((1, 4)), "path": Path("a/b"), "ü": 1})

        return invoke(verb()(function), *arguments)

    return table


def test_tables_align_numbers_to_the_right(tabled: Callable[..., Result]) -> None:
    assert tabled().stdout.splitlines() == [
        "name          acc     n",
        "---------  ------  ----",
        "int4       0.9123    10",
        "fp32 long       -  2000",
    ]


def test_json_takes_numpy_and_paths(tabled: Callable[..., Result]) -> None:
    expected = {"acc": 0.5, "boxes": [[0, 0, 0, 0]], "path": "a/b", "ü": 1}
    assert json.loads(tabled("--json").stdout) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    def function(console: Console) -> None:
        console.result({"rows": [{"delta": value, "array": np.array([value])}]})

    assert json.loads(invoke(verb()(function), "--json").stdout) == {"rows": [{"delta": None, "array": [None]}]}
