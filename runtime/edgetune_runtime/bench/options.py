"""How the rows of a measurement are run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_runtime.errors import InputError
from edgetune_runtime.records import Shard
from edgetune_runtime.typed_json import Count, Number, OrAbsent, Seconds, encode


@dataclass(frozen=True)
class Options:
    """How rows are run; the same for all of them.

    `rounds` deals the records out into that many parts and runs part after part, each over all targets, so that a
    machine that slows down for a while slows all of them. `stall_s` ends a worker that answers nothing for so long.
    Without `threads` the engine chooses, as it must on a GPU. `max_pixels` are the bounds of the resized pictures, in
    pixels, at each of which every target is a row; None leaves each its own. `shard` is the part that is answered of
    the records that `limit` leaves.
    """

    limit: Number | None = None
    device: str = "cpu"
    threads: Number | None = None
    warmup: Count = 2
    rounds: Number = 1
    max_new_tokens: Number = 128
    stall_s: Seconds = 600.0
    max_pixels: tuple[Number, ...] | None = None
    shard: OrAbsent[Shard] = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no measurement; not-a-number is smaller than nothing."""
        if not 1 <= self.stall_s <= 1e9:
            raise InputError(f"--stall {self.stall_s:g}: must be a number of seconds from 1 on")
        if self.warmup < 0:
            raise InputError(f"--warmup {self.warmup}: must be 0 or more")

    @classmethod
    def of(cls, flags: Any, *, max_pixels: tuple[int, ...] | None, shard: Shard | None = None) -> Options:
        """Return what a command's flags say; they have these names, but for `stall`, whose seconds are `stall_s`."""
        names = ("limit", "device", "threads", "warmup", "rounds", "max_new_tokens")
        same = {name: getattr(flags, name) for name in names}
        return cls(**same, stall_s=flags.stall, max_pixels=max_pixels, shard=shard)

    def arguments(self, data: Path, part: int) -> list[str]:
        """The arguments of a worker that runs round `part` (from 0) over `data`."""
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        shard = [] if self.shard is None else ["--shard", str(self.shard)]
        return [
            *("--data", str(data), "--device", self.device, "--warmup", str(self.warmup)),
            *("--max-new-tokens", str(self.max_new_tokens), "--round", f"{part + 1}/{self.rounds}", *limit, *shard),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name."""
        found: dict[str, Any] = encode(self)
        return found
