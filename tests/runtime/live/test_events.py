from __future__ import annotations

import pytest
from PIL import Image

from edgetune_runtime.errors import InputError
from edgetune_runtime.live.events import Events
from edgetune_runtime.live.frames import Frame, StillPicture
from edgetune_runtime.live.observations import Observation, Seen

Box = tuple[float, float, float, float]
HERE: Box = (10.0, 10.0, 30.0, 30.0)
NEAR: Box = (12.0, 10.0, 32.0, 30.0)
AWAY: Box = (60.0, 10.0, 80.0, 30.0)


def look(*boxes: Box, status: str | None = None, answered: bool = True, scores: tuple[float, ...] = ()) -> Observation:
    """What is seen of a cup in a picture of 100 x 80 pixels."""
    frame = Frame(0, StillPicture(Image.new("RGB", (100, 80))), 0.0, 0)
    surely = scores or (0.9,) * len(boxes)
    seen = tuple(Seen("a cup", "cup", box, score, "answered", 0.0) for box, score in zip(boxes, surely, strict=True))
    return Observation(frame, seen, {"a cup": status or ("found" if boxes else "refused")}, answered, 0.0)


def told(events: Events, *observations: Observation) -> list[str]:
    return [event.kind for observation in observations for event in events.of(observation)]


def test_something_is_found_moves_and_is_lost() -> None:
    assert told(Events(), look(), look(HERE), look(NEAR), look(AWAY), look(AWAY), look(), look()) == [
        "found",
        "moved",
        "lost",
    ]


def test_a_slow_move_is_told_once_it_is_far_enough() -> None:
    steps = [look((10.0 + step, 10.0, 30.0 + step, 30.0)) for step in range(0, 41, 2)]
    # A tenth of the diagonal is 12.8 pixels.
    assert told(Events(), *steps) == ["found", "moved", "moved"]


def test_only_what_was_asked_for_is_told() -> None:
    assert told(Events(["lost"]), look(HERE), look(AWAY), look()) == ["lost"]
    with pytest.raises(InputError, match="there is no event 'seen'"):
        Events(["seen"])


def test_several_answers_may_have_to_agree() -> None:
    events = Events(confirm=2)
    flicker = (look(HERE), look(), look(HERE), look())
    assert told(events, *flicker) == []
    assert told(events, look(HERE), look(HERE)) == ["found"]
    assert told(events, look(), look(HERE), look(), look(HERE)) == []
    assert told(events, look(), look()) == ["lost"]


def test_a_box_that_was_tracked_and_an_answer_that_could_not_be_read_change_nothing() -> None:
    events = Events()
    assert told(events, look(HERE, answered=False)) == []
    assert told(events, look(HERE), look(status="unparsed"), look(answered=False), look(AWAY, answered=False)) == [
        "found"
    ]


def test_of_several_boxes_the_surest_counts() -> None:
    (event,) = Events().of(look(HERE, AWAY, scores=(0.2, 0.8)))
    assert event.box.box == AWAY


def test_what_is_lost_was_where_it_was_seen_last() -> None:
    events = Events()
    assert told(events, look(HERE), look(NEAR)) == ["found"]
    (event,) = events.of(look())
    assert event.to_dict()["event"] == "lost" and event.to_dict()["box"] == list(NEAR)
