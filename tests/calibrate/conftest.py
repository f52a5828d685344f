"""Records to calibrate on; made once per test process, not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.conftest import write_records


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of six records about three pictures, one of each form and an absent object."""
    return write_records(tmp_path_factory.mktemp("records") / "calibration")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same records about other pictures."""
    return write_records(tmp_path_factory.mktemp("records") / "evaluation", seed=1)
