"""Engines that another distribution brings, found by their entry point and used in place of the runtime's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune_runtime import Session
from edgetune_runtime.backends.onnx.engine import OnnxBackend
from edgetune_runtime.errors import InputError
from packages import search, write_package


@pytest.fixture
def other_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution that declares the runtime's own ONNX engine as the engine "again"."""
    points = {"edgetune.backends": {"again": "edgetune_runtime.backends.onnx.engine:OnnxBackend"}}
    search(write_package(tmp_path, points, name="others"), monkeypatch)
    return tmp_path


def test_an_engine_of_another_distribution_is_loaded_by_name(qwen3_vl_bundle: Path, other_distribution: Path) -> None:
    session = Session.load(qwen3_vl_bundle, engine="again", threads=1)
    assert isinstance(session._backend, OnnxBackend)


def test_an_unknown_engine_is_refused_with_those_that_are_there(
    qwen3_vl_bundle: Path, other_distribution: Path
) -> None:
    with pytest.raises(InputError, match="unknown engine 'agian'") as caught:
        Session.load(qwen3_vl_bundle, engine="agian", threads=1)
    assert "again" in str(caught.value.hint)
