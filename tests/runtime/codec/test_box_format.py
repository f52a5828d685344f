"""The format of boxes as a manifest carries it: a codec for models that no registry of this version knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgetune_runtime.codec.box_format import BoxFormat
from edgetune_runtime.codec.grounding import Geometry, encode, parse
from edgetune_runtime.errors import InputError
from edgetune_runtime.families import FAMILIES

SQUARE = Geometry(width=200, height=200, resized_width=224, resized_height=224)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_it_survives_a_manifest(family: Any) -> None:
    carried = json.loads(json.dumps(family.box_format.to_dict()))
    assert BoxFormat.from_dict(carried) == family.box_format


def test_a_format_of_no_known_family_writes_and_reads() -> None:
    later = {"frame": "norm01", "style": "ref_box", "decimals": 3, "absent": "nowhere", "refusals": ["Not in view"]}
    box_format = BoxFormat.from_dict(later)
    text = encode([[25, 50, 150, 199]], ["jug"], SQUARE, box_format)
    assert text == "<ref>jug</ref><box>(0.125,0.250),(0.750,0.995)</box>"
    assert parse(text, SQUARE, box_format).detections[0].box == pytest.approx((25, 50, 150, 199))
    assert encode([], [], SQUARE, box_format) == "nowhere"
    assert [parse(words, SQUARE, box_format).status for words in ("nowhere", " not in view.", "None")] == [
        "refused",
        "refused",
        "unparsed",
    ]


GOOD = {"frame": "norm1000", "style": "json", "decimals": 0, "absent": "[]", "refusals": ["None"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": "norm999"}, "box frame 'norm999' is unknown: it must be one of norm1000, resized"),
        ({"frame": ["norm1000"]}, "box frame"),
        ({"style": "yaml"}, "box style 'yaml' is unknown"),
        ({"decimals": -1}, "must be 0 to 6, got -1"),
        ({"decimals": 10**9}, "must be 0 to 6"),
        ({"decimals": 1.5}, "must be a whole number, got 1.5"),
        ({"decimals": True}, "must be a whole number, got True"),
        ({"frame": "norm01"}, "norm01 needs decimals"),
        ({"absent": " "}, "must not be empty"),
        ({"absent": None}, "must be texts"),
        ({"refusals": "None"}, "must be texts"),
        ({"refusals": ["None", 3]}, "must be texts"),
        ({"order": "yxyx"}, "has the fields frame, style, decimals, absent, refusals"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BoxFormat.from_dict(GOOD | change)


@pytest.mark.parametrize("values", [None, [], "json", {}, {"frame": "norm1000"}])
def test_what_is_no_format_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match="a box format has the fields"):
        BoxFormat.from_dict(values)
