"""What a progress bar tells of a step."""

from __future__ import annotations

import re
from mmap import mmap

import pytest

from edgetune_core.progress import Step, memory_in_use


def test_parts_memory_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of the time before the first part is done; the last part is never more than all."""
    monkeypatch.setattr("edgetune_core.progress.perf_counter", iter([100.0, 130.0, 190.0]).__next__)
    step = Step("decoder")
    assert re.fullmatch(r"decoder 1/36, \d+\.\d GB", step.told(0, 36))
    assert re.fullmatch(r"decoder 4/36, \d+\.\d GB, 5:30 left", step.told(3, 36))
    assert re.fullmatch(r"decoder 36/36, \d+\.\d GB, 0:00 left", step.told(36, 36))


def test_what_an_interrupted_run_had_finished_tells_nothing_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune_core.progress.perf_counter", iter([100.0, 130.0]).__next__)
    step = Step("block")
    assert "left" not in step.told(20, 36)
    assert step.told(21, 36).endswith("7:30 left")


def test_memory_is_what_is_resident_now() -> None:
    """It grows with pages that are filled, and shrinks when they are gone."""
    before = memory_in_use()
    with mmap(-1, 50_000_000) as pages:  # an array may be put into a gap of the heap, which keeps it
        for _ in range(50):
            pages.write(bytes(1_000_000))
        assert memory_in_use() - before > 40_000_000
    assert memory_in_use() - before < 10_000_000
