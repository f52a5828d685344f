"""A data set with one of every fault; built once a process, not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.broken import Writer, broken


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Writer, Path]:
    """What was planted, and the file of records."""
    writer = broken(tmp_path_factory.mktemp("broken") / "broken")
    return writer, writer.write("train.jsonl")
