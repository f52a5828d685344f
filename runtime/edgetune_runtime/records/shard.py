"""Dividing a data set among the jobs of a scheduler, each of which takes one shard of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from edgetune_runtime.errors import InputError, excerpt

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Shard:
    """Shard `index` of `count`, counted from 1: every `count`-th picture in the order in which they first appear.

    All records of one picture fall into one shard. The division follows from the order of the records alone, so every
    machine makes the same, and the numbers of pictures of two shards differ by one at most.

    Examples:
        >>> from edgetune_runtime.records import Shard
        >>> asked = [("a.png", "cup"), ("b.png", "jug"), ("a.png", "mug"), ("c.png", "owl")]
        >>> Shard.parse("1/2").take(asked, by=lambda record: record[0])
        [('a.png', 'cup'), ('a.png', 'mug'), ('c.png', 'owl')]
        >>> Shard(2, 2).take(["a.png", "b.png", "c.png"])
        ['b.png']
        >>> Shard.parse("3/2")
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: shard 3/2: there is no shard 3 of 2

    Raises:
        InputError: the index is not one of 1 to `count`.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        """Refuse a shard that is none of its count."""
        if not 1 <= self.index <= self.count:
            hint = f"shards are counted from 1: 1/{self.count} to {self.count}/{self.count}" if self.count > 0 else None
            raise InputError(f"shard {self}: there is no shard {self.index} of {self.count}", hint=hint)

    def __str__(self) -> str:
        """As on a command line: "2/5"."""
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/5", the second of five.

        Raises:
            InputError: it is not written so, or not one of 1 to the count.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None:
            raise InputError(f"{excerpt(text, 40)} is not a shard", hint="write I/N, as in 2/5 for the second of five")
        return cls(int(found[1]), int(found[2]))

    def take(self, items: Iterable[T], by: Callable[[T], Hashable] = lambda item: item) -> list[T]:
        """Return the items of this shard, in their order.

        Args:
            items: records or pictures, in the same order on every machine.
            by: the picture of an item, by default the item itself; items of one picture stay together.

        Raises:
            InputError: there are fewer pictures than shards, so some would be empty.
        """
        every = [(by(item), item) for item in items]
        places = {picture: place for place, picture in enumerate(dict.fromkeys(picture for picture, _ in every))}
        if len(places) < self.count:
            some = f"{len(places)} picture{'' if len(places) == 1 else 's'}"
            raise InputError(
                f"shard {self}: there are only {some} to divide, so shards would be empty",
                hint=f"divide into at most {len(places)}" if places else None,
            )
        return [item for picture, item in every if places[picture] % self.count == self.index - 1]
