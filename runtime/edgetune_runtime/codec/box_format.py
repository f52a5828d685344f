"""How a model writes boxes: all that the codec has to know about it, and nothing else of its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from edgetune_runtime.errors import InputError

BoxFrame = Literal["norm1000", "resized", "padded01", "norm01"]
BoxStyle = Literal["json", "ref_box", "special_ref_box", "ref_box_list", "plain"]

_MOST_DECIMALS = 6


@dataclass(frozen=True)
class BoxFormat:
    """The frame and the text of a model's boxes. A bundle carries it, so that no registry of families is asked.

    Attributes:
        frame: the frame that coordinates are written in: "norm1000" (0-1000 of width and height), "resized" (pixels of
            the resized image), "norm01" (0-1 of width and height) or "padded01" (0-1 of the image padded to a square);
            see `geometry`.
        style: the text that a box is written in, see `grammar`.
        decimals: how many decimals a coordinate is written with; boxes are rounded to steps of `10 ** -decimals`.
        absent: the answer that says that the object is not there.
        refusals: words that say so too. Case, space around them, quotes and a full stop do not matter.

    Raises:
        InputError: a value is none of these.
    """

    frame: BoxFrame
    style: BoxStyle
    decimals: int = 0
    absent: str = "[]"
    refusals: tuple[str, ...] = ("None", "There is none", "There are none")

    def __post_init__(self) -> None:
        for name, known in (("frame", get_args(BoxFrame)), ("style", get_args(BoxStyle))):
            if getattr(self, name) not in known:
                raise InputError(f"box {name} {getattr(self, name)!r} is unknown: it must be one of {', '.join(known)}")
        if not 0 <= self.decimals <= _MOST_DECIMALS:
            raise InputError(f"box decimals must be 0 to {_MOST_DECIMALS}, got {self.decimals}")
        if self.frame in ("padded01", "norm01") and not self.decimals:
            raise InputError(f"the box frame {self.frame} needs decimals, for it ends at 1")
        if not all(word.strip() for word in (self.absent, *self.refusals)):
            raise InputError("the words for an absent object must not be empty")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"refusals": list(self.refusals)}

    @classmethod
    def from_dict(cls, values: Any) -> BoxFormat:
        """Return what `to_dict` wrote down.

        Raises:
            InputError: a field is missing or unknown, or has a value that it cannot have.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            found = ", ".join(map(str, values)) if isinstance(values, Mapping) else repr(values)
            raise InputError(f"a box format has the fields {', '.join(names)}, got {found or 'none'}")
        if type(values["decimals"]) is not int:
            raise InputError(f"box decimals must be a whole number, got {values['decimals']!r}")
        words = values["refusals"]
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in (values["absent"], *words)):
            raise InputError(f"the words for an absent object must be texts, got {values['absent']!r} and {words!r}")
        return cls(**(dict(values) | {"refusals": tuple(words)}))
