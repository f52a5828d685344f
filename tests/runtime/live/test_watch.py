from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from edgetune_runtime.answer import Answer
from edgetune_runtime.bench.metrics import sample_iou
from edgetune_runtime.errors import ImageError, InputError
from edgetune_runtime.live.frames import StillPicture, VideoPicture
from edgetune_runtime.live.observations import Observation
from edgetune_runtime.live.sources import Fault, Paced, Shot, SourceError, source_of
from edgetune_runtime.live.watch import Watcher
from edgetune_runtime.session import Session
from edgetune_runtime.timing import Timings
from live import Scripted, moving, plain, shift, video

from .conftest import Scene


@pytest.fixture(scope="module")
def clip(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("clip") / "moving.mp4", moving(scene.picture, 90))


def truth(scene: Scene, number: int) -> tuple[float, float, float, float]:
    (x1, y1, x2, y2), (x, y) = scene.box, shift(number)
    return x1 + x, y1 + y, x2 + x, y2 + y


def check(observation: Observation, scene: Scene, least: float) -> None:
    """Every box is where the object is in the frame that it is told of."""
    for seen in observation.boxes:
        assert sample_iou([seen.box], [truth(scene, observation.frame.number)]) > least


def test_every_frame_of_a_recording_is_answered(watching: Session, scene: Scene, tmp_path: Path) -> None:
    clip = video(tmp_path / "short.mp4", moving(scene.picture, 6))
    watcher = Watcher(watching, source_of(str(clip)), [scene.phrase])
    found = list(watcher)
    assert [observation.frame.number for observation in found] == list(range(6))
    for observation in found:
        expected = watching.ground(observation.frame.picture.rgb(), scene.phrase)
        assert [(seen.box, seen.label) for seen in observation.boxes] == [(item.box, item.label) for item in expected]
        # The answer about the frame before is a draft, and a wider pass rounds otherwise.
        for seen, item in zip(observation.boxes, expected, strict=True):
            assert seen.score == pytest.approx(item.score, abs=0.02)
        assert observation.answered and all(seen.age == 0.0 for seen in observation.boxes)
        check(observation, scene, 0.7)
    assert watcher.figures.answered == watcher.figures.frames == 6


def test_boxes_are_carried_between_the_answers_of_a_recording(watching: Session, scene: Scene, clip: Path) -> None:
    watcher = Watcher(watching, source_of(str(clip)), [scene.phrase], every=1.0, track=True)
    found = list(watcher)
    assert [observation.frame.number for observation in found] == list(range(90))
    assert [observation.frame.number for observation in found if observation.answered] == [0, 30, 60]
    for observation in found:
        (seen,) = observation.boxes
        since = observation.frame.number % 30
        assert seen.source == ("tracked" if since else "answered")
        assert seen.age == pytest.approx(since / 30, abs=1e-3)
        check(observation, scene, 0.7)
    assert (watcher.figures.answered, watcher.figures.tracked) == (3, 87)


def test_a_camera_is_answered_for_its_newest_frames_and_tracked_between(
    watching: Session, scene: Scene, clip: Path
) -> None:
    watcher = Watcher(watching, Paced(source_of(str(clip))), [scene.phrase], track=True)
    found = list(watcher)
    answered = [observation for observation in found if observation.answered]
    tracked = [observation.frame.number for observation in found if not observation.answered]
    numbers = [observation.frame.number for observation in answered]
    assert numbers == sorted(set(numbers)), "a frame was analysed twice, or an older one after a newer one"
    assert tracked == sorted(set(tracked))
    assert len(tracked) > len(numbers) > 1
    for observation in found:
        assert observation.boxes
        check(observation, scene, 0.7)
        assert 0 <= observation.delay <= observation.boxes[0].age + 1e-6
    # A box is as old as its answer and the one frame that it waited for; in a queue it would be seconds older.
    longest = max(observation.seconds for observation in answered)
    assert max(observation.delay for observation in answered) <= longest + 1 / 30 + 0.5
    assert watcher.figures.frames == 90


def test_without_a_tracker_only_answers_come(watching: Session, scene: Scene, clip: Path) -> None:
    found = list(Watcher(watching, Paced(source_of(str(clip)), speed=3), [scene.phrase]))
    assert found and all(observation.answered for observation in found)


def test_a_camera_that_is_lost_is_watched_on(watching: Session, scene: Scene) -> None:
    gone = SourceError("gone")
    camera = Scripted([scene.picture, 0.5, Fault("half"), gone], [gone], [scene.picture, scene.picture])
    watcher = Watcher(watching, camera, [scene.phrase], track=True)
    found = list(watcher)
    assert {observation.frame.number for observation in found if observation.answered} >= {0, 2}
    assert (watcher.figures.losses, watcher.figures.faults, watcher.figures.frames) == (1, 1, 3)


def test_phrases_may_change_while_it_watches(watching: Session, scene: Scene) -> None:
    pictures: list[Image.Image | Fault | float | SourceError] = []
    for _ in range(60):
        pictures += [scene.picture, 0.1]
    watcher = Watcher(watching, Scripted(pictures), [scene.phrase])
    asked: list[list[str]] = []
    for observation in watcher:
        asked.append(list(observation.phrases))
        if len(asked) == 2:
            watcher.phrases = ["the zebra", scene.phrase]
        if len(asked) == 5:
            watcher.stop()
    assert asked[0] == [scene.phrase]
    assert asked[-1] == ["the zebra", scene.phrase]


def test_what_cannot_be_asked_is_refused_before_anything_is_read(watching: Session, scene: Scene) -> None:
    for phrases in ([], [" "], "a text"):
        with pytest.raises(InputError):
            Watcher(watching, Scripted(), phrases)


def test_frames_that_the_model_does_not_take_end_the_watch(watching: Session) -> None:
    thin = Image.new("RGB", (4000, 8))
    with pytest.raises(ImageError):
        list(Watcher(watching, Scripted([thin, 0.2]), ["the owl"]))


def test_a_watch_ends_within_an_answer_when_it_is_told_to(watching: Session, scene: Scene) -> None:
    forever: list[Image.Image | Fault | float | SourceError] = [scene.picture, 600.0]
    watcher = Watcher(watching, Scripted(forever), [scene.phrase])
    found: list[Observation] = []
    thread = threading.Thread(target=lambda: found.extend(watcher), daemon=True)
    thread.start()
    while not found and thread.is_alive():
        time.sleep(0.01)
    watcher.stop()
    thread.join(5)
    assert not thread.is_alive() and len(found) == 1


def test_an_hour_of_frames_takes_no_more_memory_than_a_minute(watching: Session, scene: Scene) -> None:
    """108,000 frames, as many as an hour has at 30 a second, as fast as they can be looked at."""

    class Hour(Scripted):
        def shots(self) -> Iterator[Shot | Fault]:
            pictures = [StillPicture(picture) for picture in moving(scene.picture, 80)]
            for number in range(108_000):
                yield Shot(pictures[number % 80], time.monotonic())
                if number % 10 == 0:
                    time.sleep(0.001)

    watcher = Watcher(watching, Hour(), [scene.phrase], track=True)
    numbers, memory = [], []
    for observation in watcher:
        if observation.answered:
            numbers.append(observation.frame.number)
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert watcher.figures.frames == 108_000
    assert len(numbers) > 20 and numbers == sorted(set(numbers))
    early, late = memory[len(memory) // 5], max(memory[len(memory) // 5 :])
    assert late < 1.05 * early, f"from {early} to {late} pages"


class Slow:
    """Answers that nothing is there, after a while; what a large model is like."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def request(self, phrase: str) -> str:
        return phrase

    def answer(self, image: Any, prompt: Any, **options: Any) -> Any:
        time.sleep(self._seconds)
        timings = Timings(0.0, 0.0, 0.0, 0.0, self._seconds, 1)
        nothing = Answer(text="[]", detections=[], complete=True, problem=None, refused=True, timings=timings)
        return [nothing for _ in prompt]


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def test_frames_that_go_by_while_a_slow_model_answers_are_not_kept() -> None:
    """A frame of 1080p is 3 MB; of sixty a second nothing but small pictures may stay."""

    class Large(Scripted):
        def shots(self) -> Iterator[Shot | Fault]:
            for number in range(240):
                pixels = np.full((1080, 1920, 3), number % 256, np.uint8)
                yield Shot(VideoPicture(av.VideoFrame.from_ndarray(pixels, format="rgb24")), time.monotonic())
                time.sleep(0.01)

    before = resident()
    grown = [resident() - before for _ in Watcher(Slow(1.0), Large(), ["a cup"], track=True)]
    assert len(grown) > 20 and max(grown) < 150


def test_answers_wait_for_who_is_slow_and_not_in_a_queue() -> None:
    pictures: list[Image.Image | Fault | float | SourceError] = []
    for number in range(200):
        pictures += [plain(number % 256), 0.01]
    late = []
    for observation in Watcher(Slow(0.01), Scripted(pictures), ["a cup"]):
        late.append(observation.delay)
        time.sleep(0.2)
    # One answer is ready and the next is begun when it was taken, of the newest frame; a queue would be seconds long.
    assert len(late) > 5 and max(late) < 1.0


def test_a_recording_that_is_stopped_ends_and_is_not_watched_twice(watching: Session, scene: Scene, clip: Path) -> None:
    watcher = Watcher(watching, source_of(str(clip)), [scene.phrase])
    found = []
    for observation in watcher:
        found.append(observation)
        watcher.stop()
    assert len(found) == 1
    with pytest.raises(InputError, match="watches once"):
        iter(watcher)


def test_a_recording_whose_time_goes_back_is_watched_on() -> None:
    """Dashcams join films, each of which begins at nought."""

    class Joined(Scripted):
        def shots(self) -> Iterator[Shot | Fault]:
            for at in (0.0, 10.0, 11.0, 1.0, 1.5, 2.5):
                yield Shot(StillPicture(plain(1)), time.monotonic(), at)

    found = list(Watcher(Slow(0.0), Joined(live=False), ["a cup"], every=1.0))
    assert [observation.frame.media_time for observation in found] == [0.0, 10.0, 11.0, 1.0, 2.5]
    paced = Watcher(Slow(0.0), Paced(Joined(live=False), speed=100), ["a cup"])
    assert 5 in [observation.frame.number for observation in paced]


def test_a_film_that_breaks_off_is_not_played_again() -> None:
    camera = Scripted([plain(0), SourceError("broke off")], [plain(1)], live=False)
    with pytest.raises(SourceError, match="broke off"):
        list(Watcher(Slow(0.0), Paced(camera), ["a cup"]))


def test_a_folder_without_a_picture_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    told: list[str] = []
    with pytest.raises(SourceError, match="none of its 1 frames"):
        list(Watcher(Slow(0.0), source_of(str(tmp_path)), ["a cup"], tell=told.append))
    assert len(told) == 1 and "a.png" in told[0]


def test_answers_come_no_more_often_than_was_asked_for(watching: Session, scene: Scene, clip: Path) -> None:
    found = list(Watcher(watching, Paced(source_of(str(clip))), [scene.phrase], every=0.8))
    moments = [observation.frame.captured for observation in found]
    assert len(moments) > 1
    assert all(later - earlier >= 0.79 for earlier, later in itertools.pairwise(moments))
