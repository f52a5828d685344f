from __future__ import annotations

import time

import pytest
from PIL import Image

from edgetune_runtime.live.capture import Capture, pause
from edgetune_runtime.live.sources import Fault, SourceError
from live import Scripted, number_of, plain


def test_the_newest_frame_wins() -> None:
    script = [plain(0), *[step for number in range(1, 30) for step in (0.01, plain(number))], 0.2]
    with Capture(Scripted(script)) as capture:
        seen: list[int] = []
        after = -1
        while (frame := capture.newest(after)) is not None:
            seen.append(number_of(frame.picture.rgb()))
            assert frame.number == seen[-1]
            after = frame.number
            time.sleep(0.05)
    assert seen == sorted(set(seen)) and seen[0] == 0 and seen[-1] == 29
    assert len(seen) < 20 and capture.frames == 30


def test_a_source_that_is_lost_is_opened_again_and_goes_on_counting() -> None:
    gone = SourceError("gone")
    told: list[str] = []
    camera = Scripted([plain(0), gone], [gone], [gone], [plain(1), Fault("half a frame"), 2.1, plain(2)])
    with Capture(camera, tell=told.append) as capture:
        numbers, after = [], -1
        while (frame := capture.newest(after)) is not None:
            numbers.append(frame.number)
            after = frame.number
    assert numbers[-1] == 2 and capture.frames == 3
    assert capture.losses == 1 and capture.faults == 1
    assert len(told) == 3 and "trying again" in told[0]
    assert "half a frame" in told[1] and "there again" in told[2]


def test_a_source_that_comes_and_goes_is_told_of_once_and_asked_more_and_more_seldom() -> None:
    gone = SourceError("gone")
    told: list[str] = []
    began = time.monotonic()
    lives: list[list[Image.Image | Fault | float | SourceError]] = [[plain(number), gone] for number in range(6)]
    with Capture(Scripted(*lives), tell=told.append) as capture:
        after = -1
        while after < 5 and (frame := capture.newest(after)) is not None:
            after = frame.number
    assert len(told) == 1 and capture.losses == 1
    assert time.monotonic() - began > 1.0  # five pauses


def test_a_camera_that_refuses_is_not_asked_again_and_again() -> None:
    refused = SourceError("401", refused=True)
    with Capture(Scripted([refused], [plain(0)]), patient=True) as capture, pytest.raises(SourceError, match="401"):
        capture.newest(-1)


def test_a_source_that_is_not_there_at_first_is_an_error_unless_it_is_waited_for() -> None:
    gone = SourceError("nobody answers")
    with Capture(Scripted([gone], [plain(0)])) as capture, pytest.raises(SourceError, match="nobody answers"):
        capture.newest(-1)
    with Capture(Scripted([gone], [plain(0)]), patient=True) as capture:
        frame = capture.newest(-1)
        assert frame is not None and frame.number == 0


def test_an_error_that_nobody_foresaw_reaches_who_waits() -> None:
    class Broken(Scripted):
        def shots(self):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("in a driver")
            yield

    with Capture(Broken()) as capture, pytest.raises(SourceError, match="ZeroDivisionError: in a driver"):
        capture.newest(-1)


def test_attempts_come_within_a_second_of_the_end_of_a_short_outage() -> None:
    assert all(pause(away) <= 1.0 for away in (0.0, 1.0, 5.0, 10.0))
    assert pause(24 * 3600.0) == 15.0


def test_a_clock_that_is_set_moves_stamps_and_no_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a board without a battery, whose clock jumps from 1970 to today when the network comes up."""
    day, real = 86_400 * 1_000_000_000, time.time_ns
    moved = [0]
    monkeypatch.setattr(time, "time_ns", lambda: real() + moved[0])
    monkeypatch.setattr(time, "time", lambda: (real() + moved[0]) / 1e9)
    with Capture(Scripted([plain(0), 0.3, plain(1), 0.3, plain(2), 0.1])) as capture:
        frames = []
        for after, jump in ((-1, 20_000 * day), (0, -40_000 * day), (1, 0)):
            frame = capture.newest(after)
            assert frame is not None
            assert 0 <= time.monotonic() - frame.captured < 30
            frames.append(frame)
            moved[0] += jump
    assert frames[1].stamp - frames[0].stamp > 19_999 * day
    assert frames[2].stamp < frames[0].stamp
    assert 0.2 < frames[1].captured - frames[0].captured < 30
