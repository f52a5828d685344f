"""What `edgetune bench merge` is given: files of results, whole or in shards, and the machines that they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_bench.folder import RESULTS, read_results
from edgetune_runtime.bench.results import Input, Results
from edgetune_runtime.errors import InputError

UNNAMED = ""
"""The machine of shards that no machine was named for."""
_HINT = "name the machines where there are several, MACHINE=RESULTS, the shards of one machine alike"


@dataclass(frozen=True)
class Source:
    """Results and where they lie; `machine` is the name that was given with them."""

    path: Path
    machine: str | None
    results: Results

    @property
    def name(self) -> str:
        """The machine's name: as given, or as the file is called, or the folder of a results.json."""
        place = self.path.resolve()
        return self.machine or (place.parent.name if place.name == RESULTS else place.name.removesuffix(".json"))

    @property
    def role(self) -> str:
        """What these results are to the stage that joins them."""
        shard = self.results.shard
        return f"results of {self.name}" + (f" shard {shard}" if shard else "")


def read_sources(arguments: Sequence[str]) -> list[Source]:
    """Read `[MACHINE=]RESULTS` arguments.

    Raises:
        InputError: a file cannot be read, or is joined from several machines already.
    """
    found = []
    for text in arguments:
        name, equals, rest = text.partition("=")
        named = bool(equals and name) and not Path(text).exists()
        path = Path(rest if named else text)
        results = read_results(path)
        if results.machines is not None:
            raise InputError(f"{path}: is joined from several machines already", hint="name the results it came from")
        found.append(Source(path, name if named else None, results))
    return found


def by_machine(sources: Sequence[Source]) -> dict[str, list[Source]]:
    """Return the results of each machine: one file, or shards.

    Shards are one machine's where all have one name. Where none has a name, nothing but shards may be given, and their
    machine is `UNNAMED`.

    Raises:
        InputError: two machines would have one name, or shards stand beside results of the whole set.
    """
    found: dict[str, list[Source]] = {}
    for source in sources:
        unnamed = source.results.shard is not None and source.machine is None
        found.setdefault(UNNAMED if unnamed else source.name, []).append(source)
    if UNNAMED in found and len(found) > 1:
        part = found[UNNAMED][0]
        other = next(group[0] for name, group in found.items() if name != UNNAMED)
        raise _mixed(part, other)
    for name, group in found.items():
        shards = [source for source in group if source.results.shard is not None]
        whole = [source for source in group if source.results.shard is None]
        if shards and whole:
            raise _mixed(shards[0], whole[0])
        if len(whole) > 1:
            raise InputError(f"two machines would be called {name!r}", hint="name them: MACHINE=RESULTS")
    return found


def row_identity(results: Results, row: str) -> tuple[str, ...]:
    """Return the sha256 of the folders that a row was made from, () where they are not known."""
    return tuple(found.sha256 for found in row_inputs(results.inputs, row).values())


def row_inputs(inputs: Mapping[str, Input], old: str, new: str | None = None) -> dict[str, Input]:
    """Return what a row was made from, under another name of the row where one is given."""
    keys = {f"row {old}{more}": f"row {new or old}{more}" for more in ("", " adapter")}
    return {name: inputs[key] for key, name in keys.items() if key in inputs}


def brief(value: object) -> str:
    """Return a value as a message repeats it; of a sha256, the first twelve digits."""
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:12]
    return "none" if value is None else str(value)


def _mixed(shard: Source, other: Source) -> InputError:
    is_shard = other.results.shard
    told = f"shard {is_shard} of the machine {other.name!r}" if is_shard else "of the whole set"
    return InputError(f"{shard.path} is shard {shard.results.shard}, and {other.path} is {told}", hint=_HINT)
