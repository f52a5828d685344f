"""Where an answer stands in its grammar: legal tokens, the bounds of numbers, names and their ends."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.codec.geometry import Geometry
from edgetune_runtime.constrained.automaton import END, Automaton, State
from edgetune_runtime.constrained.draft import Draft
from edgetune_runtime.constrained.walk import LONGEST_LABEL, Bounds, Rules, Walk
from edgetune_runtime.errors import InputError

PIECES = [*"0123456789", ", ", "[", "]", '"', "red", " cup", "\\", "\n", "<control>", '!"', "<end>"]
TOKEN = {piece: number for number, piece in enumerate(PIECES)}
DIGITS = [TOKEN[digit] for digit in "0123456789"]


def toy() -> Automaton:
    """[x1, y1, x2, y2]"name" of numbers up to 99, or nothing but the end; single digits."""
    states: list[State] = [State({TOKEN["["]: 1, TOKEN["<end>"]: END})]
    for slot in range(4):
        base, close = 1 + 3 * slot, TOKEN["]" if slot == 3 else ", "]
        onward = base + 3 if slot < 3 else 13
        first = {token: base + (1 if token else 2) for token in DIGITS}  # nothing comes behind a zero
        states += [
            State(first, slot),
            State({close: onward} | dict.fromkeys(DIGITS, base + 2), slot),
            State({close: onward}, slot),
        ]
    states += [State({TOKEN['"']: 14}), State({TOKEN['"']: 15}, label=True), State({TOKEN["<end>"]: END})]
    return Automaton(tuple(states), 99)


def rules(width: int = 99, height: int = 99) -> Rules:
    found = Rules.of(
        toy(),
        Geometry(width, height, width, height),
        BoxFormat("resized", "json"),
        PIECES.__getitem__,
        frozenset({TOKEN["<control>"], TOKEN["<end>"]}),
    )
    assert found is not None
    return found


def walked(text: list[str], where: Rules) -> Walk:
    walk = Walk(where)
    for piece in text:
        assert walk.legal(TOKEN[piece]), (piece, walk)
        walk = walk.after(TOKEN[piece])
    return walk


def legal(walk: Walk) -> str:
    return "".join(piece for piece, token in TOKEN.items() if walk.legal(token))


def test_numbers_stay_in_the_picture_and_leave_room_for_the_far_corner() -> None:
    where = rules(50, 7)
    assert legal(walked(["["], where)) == "0123456789"
    # x1 is at most 49: 5 may be the whole number, but 50 leaves no room for x2.
    assert legal(walked(["[", "4"], where)) == "0123456789, "
    assert legal(walked(["[", "5"], where)) == ", "
    # y1 is at most 6, and y2 is 7 then.
    assert legal(walked(["[", "4", ", "], where)) == "0123456"
    corner = walked(["[", "4", "8", ", ", "6", ", "], where)
    assert legal(corner) == "45"  # of 49 and 50; 5 alone would be left of x1
    assert legal(corner.after(TOKEN["4"])) == "9" and corner.after(TOKEN["4"]).forced == TOKEN["9"]
    assert walked(["[", "4", "8", ", ", "6", ", ", "5", "0", ", "], where).forced == TOKEN["7"]


def test_bounds_are_what_rounds_to_a_place_inside() -> None:
    assert Bounds.of(Geometry(640, 480, 320, 240), BoxFormat("resized", "json")) == ((0, 0), (320, 240), 0)
    assert Bounds.of(Geometry(640, 480, 320, 240), BoxFormat("norm1000", "json")) == ((0, 0), (1000, 1000), 0)
    # Padded to a square of 640, the picture lies between 80 and 560: 0.125 and 0.875.
    padded = BoxFormat("padded01", "plain", decimals=2)
    assert Bounds.of(Geometry(640, 480, 336, 336), padded) == ((0, 12), (100, 88), 2)


def test_a_picture_with_larger_numbers_than_the_grammar_has_no_rules() -> None:
    where = Geometry(100, 10, 100, 10)
    assert Rules.of(toy(), where, BoxFormat("resized", "json"), PIECES.__getitem__, frozenset()) is None


BEHIND = ["[", "1", ", ", "2", ", ", "3", ", ", "4", "]", '"']


def test_a_name_is_any_text_of_its_style_up_to_what_ends_it() -> None:
    walk = walked(BEHIND, rules())
    assert walk.place.label and walk.forced is None
    assert not any(walk.legal(TOKEN[piece]) for piece in ("\n", "<control>", "<end>"))
    assert walked([*BEHIND, "red", " cup", '"'], rules()).forced == TOKEN["<end>"]
    # A token may hold the name's last letters and its end.
    assert walked([*BEHIND, "red", '!"'], rules()).forced == TOKEN["<end>"]
    # In JSON a quote behind a backslash belongs to the name, and the name does not end in the middle of an escape.
    escaped = walked([*BEHIND, "\\", '"'], rules())
    assert escaped.place.label and escaped.said == '\\"' and escaped.legal(TOKEN['"'])


def test_the_most_likely_legal_token_is_chosen_with_its_share_of_the_legal_ones() -> None:
    walk = walked(["["], rules())
    logits = np.zeros(len(PIECES), np.float32)
    logits[TOKEN["red"]], logits[TOKEN["7"]] = 9, 2
    token, probability = walk.choose(logits)
    assert PIECES[token] == "7"
    assert probability == pytest.approx(np.exp(2) / (np.exp(2) + 9))
    some = toy().tokens
    assert walk.choose(logits[some], some) == (token, probability)


def test_a_name_is_chosen_among_all_tokens_and_ended_when_it_never_ends() -> None:
    walk = walked(BEHIND, rules())
    logits = np.zeros(len(PIECES), np.float32)
    logits[TOKEN["<control>"]], logits[TOKEN["red"]] = 5, 3
    token, probability = walk.choose(logits)
    assert PIECES[token] == "red"
    assert probability == pytest.approx(np.exp(3) / np.exp(logits).sum())
    for _ in range(LONGEST_LABEL):
        token, _ = walk.choose(logits)
        walk = walk.after(token)
    assert PIECES[walk.choose(logits)[0]] == '"'


def test_a_draft_is_found_again_behind_what_differs() -> None:
    text = [*BEHIND, "red", " cup", '"', "<end>"]
    draft = Draft(rules(), [TOKEN[piece] for piece in text], numbers=True)
    walk, used = Walk(rules()), 0
    for piece in ("[", "1"):
        token, used = draft.propose(walk, used)
        assert token == TOKEN[piece]
        walk = walk.after(TOKEN[piece])
    walk = walk.after(TOKEN["5"])  # 15, and not 1
    assert draft.propose(walk, used) == (None, used)
    walk = walk.after(TOKEN[", "])
    assert draft.propose(walk, used)[0] == TOKEN["2"]
    assert draft.propose(walk, used, numbers=False)[0] is None
    # Words alone: places of numbers are known, the numbers are not.
    words = Draft(rules(), [TOKEN[piece] for piece in text])
    assert words.propose(Walk(rules()), 0)[0] == TOKEN["["]
    assert words.propose(walked(["["], rules()), 0)[0] is None
    assert words.propose(walked(BEHIND, rules()), 0)[0] == TOKEN["red"]


def test_a_draft_ends_where_the_grammar_does_not_go_on() -> None:
    draft = Draft(rules(), [TOKEN["["], TOKEN["red"], TOKEN["1"]], numbers=True)
    assert draft.propose(Walk(rules()), 0)[0] == TOKEN["["]
    assert draft.propose(walked(["["], rules()), 0)[0] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "is no automaton over tokens: KeyError"),
        ({"states": [[[1, 0], [1, 0]]], "numbers": {}, "labels": [], "largest": 9}, "two for one token"),
        ({"states": [[]], "numbers": {}, "labels": [], "largest": 9}, "without a way out"),
        ({"states": [[[3, 0]]], "numbers": {}, "labels": [], "largest": 9}, "token 3 leads to state 0, of 3 tokens"),
        ({"states": [[[1, 4]]], "numbers": {}, "labels": [], "largest": 9}, "token 1 leads to state 4"),
        ({"states": [[[1, 0, 2]]], "numbers": {}, "labels": [], "largest": 9}, "is no automaton over tokens"),
        ({"states": [[["1", 0]]], "numbers": {}, "labels": [], "largest": 9}, "is no transition"),
        ({"states": [[[1, -1]]], "numbers": {"0": 4}, "labels": [], "largest": 9}, "numbers"),
        ({"states": [[[1, -1]]], "numbers": {}, "labels": [], "largest": 0}, "the largest 0"),
        ({"states": [], "numbers": {}, "labels": [], "largest": 1}, "has 0 states"),
    ],
)
def test_what_is_no_automaton_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Automaton.from_dict(values, 3)


def test_an_automaton_is_what_it_was_written_down_as() -> None:
    assert Automaton.from_dict(toy().to_dict(), len(PIECES)) == toy()
