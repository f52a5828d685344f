"""The verb `data`: its subcommands are listed, and a mistyped one gets a suggestion."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from edgetune.cli import cli
from edgetune.commands.data import SUBCOMMANDS


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["data", *arguments], prog_name="edgetune")


def test_data_alone_lists_its_subcommands_and_counts_as_wrong_usage() -> None:
    result = run()
    assert result.exit_code == 2
    listed = result.stderr.partition("Subcommands:")[2].splitlines()
    assert set(SUBCOMMANDS) <= {line.split()[0] for line in listed if line.startswith("  ") and line.split()}


def test_a_mistyped_subcommand_gets_a_suggestion() -> None:
    result = run("convrt")
    assert result.exit_code == 2
    assert result.stderr == "error: No such command 'convrt'. Did you mean 'convert'?\nhint: see edgetune data --help\n"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_subcommands_have_help_and_the_common_options(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.stderr
    assert all(option in result.stdout for option in ("--json", "--config"))
