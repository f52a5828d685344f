"""`edgetune completion`: bash runs its script and finds the words; zsh's and fish's are click's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import FishComplete, ShellComplete, ZshComplete
from click.testing import CliRunner, Result

from edgetune.cli import VERBS, cli

PRESS_TAB = """
eval "$(edgetune completion bash)"
complete -p edgetune
press_tab() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _edgetune_completion edgetune
    echo "${COMPREPLY[@]}"
}
press_tab edgetune exp
press_tab edgetune export --form
press_tab edgetune export --precision int
press_tab edgetune nonsense --x
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["completion", *arguments], prog_name="edgetune")


def completed(*words: str) -> list[str]:
    """The words that may stand in place of the last one, as a shell is told."""
    items = ShellComplete(cli, {}, "edgetune", "_EDGETUNE_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in items]


def test_bash_completes_verbs_options_and_choices() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", PRESS_TAB], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _edgetune_completion edgetune",
        "export",
        "--format --formats",
        "int8 int4",
        "",
    ]


@pytest.mark.parametrize("kind", [ZshComplete, FishComplete])
def test_other_shells_get_the_script_of_click(kind: type[ShellComplete]) -> None:
    expected = kind(cli, {}, "edgetune", "_EDGETUNE_COMPLETE").source()
    assert run(kind.name).stdout.rstrip("\n") == expected.rstrip("\n")
    assert json.loads(run(kind.name, "--json").stdout) == {"shell": kind.name, "script": expected}


def test_a_shell_that_is_not_known_gets_the_known_ones() -> None:
    result = run("bsh")
    assert result.exit_code == 2
    assert "'bsh' is not one of bash, zsh, fish. Did you mean 'bash'?" in result.stderr


def test_verbs_and_subcommands_are_completed() -> None:
    assert completed("") == list(VERBS)
    assert completed("data", "c") == ["convert", "check", "crop"]


def test_values_are_completed_each_of_a_list() -> None:
    assert completed("export", "--format", "a") == ["awq"]
    assert completed("export", "--formats", "onnx,g") == ["onnx,gptq"]
    assert completed("data", "convert", "--box-format", "xyxy-n") == ["xyxy-norm1", "xyxy-norm1000"]
