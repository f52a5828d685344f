"""Areas of pictures as people write them: 400000, 400k or 1.5M pixels."""

from __future__ import annotations

import re

from edgetune_runtime.errors import InputError, excerpt

_AREA = re.compile(r"(\d{1,15})(?:\.(\d{1,6}))?([kM]?)", re.ASCII)
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}


def parse_area(text: str) -> int:
    """Return an area in pixels.

    >>> parse_area("400k"), parse_area("1.5M"), parse_area("262144")
    (400000, 1500000, 262144)

    Raises:
        InputError: the text is no whole number of pixels from 1 on.
    """
    found = _AREA.fullmatch(text)
    whole, part, unit = found.groups(default="") if found else ("0", "", "")
    scale: int = 10 ** len(part)
    area, rest = divmod(int(whole + part) * _UNITS[unit], scale)
    if area < 1 or rest:
        raise InputError(f"{excerpt(text, 40)} is not an area in pixels, such as 400000, 400k or 1.5M")
    return area


def area_text(area: int) -> str:
    """Return an area as short as `parse_area` reads it.

    >>> area_text(400_000), area_text(2_000_000), area_text(262_144)
    ('400k', '2M', '262144')
    """
    unit = next(unit for unit in ("M", "k", "") if area % _UNITS[unit] == 0)
    return f"{area // _UNITS[unit]}{unit}"
