"""The results of a measurement: `results.json` of `edgetune bench` and `eval`, the file of `edgetune-run bench`.

`results.schema.json` beside this module describes the same for other tools; a test holds the two together. All shares
and accuracies are 0 to 1, all times seconds, all sizes bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from edgetune_runtime.bench.figures import Differences, Grounding, Stages, Vqa
from edgetune_runtime.bench.machine import Machine as Machine
from edgetune_runtime.bench.options import Options as Options
from edgetune_runtime.bench.power.meter import Power
from edgetune_runtime.bench.predictions import Prediction
from edgetune_runtime.errors import InputError, excerpt
from edgetune_runtime.json_file import read_json_value
from edgetune_runtime.records import Shard
from edgetune_runtime.typed_json import (
    Bytes,
    Count,
    Number,
    OrAbsent,
    Range,
    Seconds,
    Share,
    decode,
    encode,
)

SCHEMA: Literal[1] = 1


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a worker's process cost: everything but the answers.

    `peak_rss_bytes` is the largest resident memory, `peak_gpu_bytes` the growth of the GPU's used memory (None without
    a driver), `cold_start_s` the time from process start to first answer, `others_cpu_share` the part of the CPU that
    other processes took, `load_average` the machine's before and after, `power` energy and temperature while records
    were answered. `self_check` is a bundle's: "none" where its export compared nothing.
    """

    engine: str
    size_bytes: Bytes
    load_s: Seconds
    cold_start_s: Seconds
    peak_rss_bytes: Bytes
    peak_gpu_bytes: Bytes | None
    others_cpu_share: Share | None
    precision: str | None = None
    device: str = "cpu"
    threads: Number | None = None
    format: OrAbsent[str] = None
    warmup: OrAbsent[Count] = None
    load_average: OrAbsent[tuple[Seconds, Seconds]] = None
    self_check: OrAbsent[str] = None
    power: OrAbsent[Power] = None


@dataclass(frozen=True, kw_only=True)
class Report(Costs):
    """What a worker writes: its costs, and its answers in the order of the records."""

    rows: tuple[Prediction, ...]
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class _Row:
    name: str
    path: str
    kind: str
    baseline: bool
    title: str | None = None
    machine: OrAbsent[str] = None
    max_pixels: OrAbsent[Number] = None


@dataclass(frozen=True, kw_only=True)
class Measured(_Row, Costs):
    """A row that ran. `delta` is there beside a baseline that ran, `answers` in the file of a device.

    `image_tokens` is the median of the records' pictures.
    """

    stages: Stages
    tokens_per_second: Seconds | None
    image_tokens: OrAbsent[Annotated[float, Range(0, 1e12)]] = None
    ground: Grounding | None
    vqa: Vqa | None
    delta: OrAbsent[Differences] = None
    answers: OrAbsent[tuple[Prediction, ...]] = None
    status: Literal["ok"] = "ok"


@dataclass(frozen=True, kw_only=True)
class Failed(_Row):
    """A row that could not be run, with what its process said last; its exit code is negative for a signal."""

    reason: str
    exit_code: int
    status: Literal["failed"] = "failed"


Row = Measured | Failed


@dataclass(frozen=True)
class Job:
    """When, by which command and on which machine a shard was measured."""

    created: str
    command: str
    machine: Machine


@dataclass(frozen=True)
class Origin:
    """When, by which command and on which machine rows were measured, and the jobs that they are joined from."""

    created: str
    command: str
    machine: Machine
    versions: dict[str, str]
    options: Options
    shards: OrAbsent[tuple[Job, ...]] = None


@dataclass(frozen=True)
class Statistics:
    """How the intervals are made."""

    method: str
    level: Annotated[float, Range(0.5, 0.9999)]
    resamples: Number
    seed: int


@dataclass(frozen=True)
class Whole:
    """The set that a shard is a part of; the sha256 is over all its pictures' files."""

    records: Number
    images_sha256: str


@dataclass(frozen=True)
class Data:
    """What every row answered; the sha256 is over the pictures' files, in record order.

    A shard has its own records and pictures here, `records_sha256` over their questions and accepted answers
    (`bench.shards`), and the `whole` that it is a part of.
    """

    path: str
    records: Number
    images_sha256: str
    records_sha256: OrAbsent[str] = None
    whole: OrAbsent[Whole] = None


@dataclass(frozen=True)
class Input:
    """A file or folder that the results depend on."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """A measurement. One machine's has `machine`, `versions` and `options`; joined ones have them in `machines`.

    `metrics` names the further figures that were asked for. `shards` are the jobs, in the order of their shards, of
    which one machine's results were joined.
    """

    schema: Literal[1] = SCHEMA
    created: str
    command: str
    statistics: Statistics
    data: Data
    inputs: dict[str, Input]
    baseline: str | None = None
    rows: tuple[Row, ...]
    machine: OrAbsent[Machine] = None
    versions: OrAbsent[dict[str, str]] = None
    options: OrAbsent[Options] = None
    machines: OrAbsent[dict[str, Origin]] = None
    metrics: OrAbsent[tuple[str, ...]] = None
    shards: OrAbsent[tuple[Job, ...]] = None

    def __post_init__(self) -> None:
        """Refuse what no measurement writes: rows of one name, or a baseline that is not the row that says so."""
        if not self.rows:
            raise InputError("rows: there are none")
        for row in self.rows:
            check_row_name(row.name)
        twice = [name for name, count in Counter(row.name for row in self.rows).items() if count > 1]
        if twice:
            raise InputError(f"rows[{twice[0]!r}]: two rows have this name")
        marked = [row.name for row in self.rows if row.baseline]
        if marked != ([] if self.baseline is None else [self.baseline]):
            raise InputError(f"baseline: is {self.baseline!r}, but the rows marked as baseline are {marked}")
        if self.machines is None and (self.machine is None or self.versions is None or self.options is None):
            raise InputError("'machine', 'versions' and 'options' belong together, or 'machines' in their place")
        if "data" not in self.inputs:
            raise InputError("inputs: no 'data'")
        if len({self.shard is None, self.data.whole is None, self.data.records_sha256 is None}) > 1:
            raise InputError("'shard' of 'options', and 'whole' and 'records_sha256' of 'data' belong together")

    @property
    def ran(self) -> list[Measured]:
        """The rows that did not fail."""
        return [row for row in self.rows if isinstance(row, Measured)]

    @property
    def failed(self) -> list[Failed]:
        """The rows that did."""
        return [row for row in self.rows if isinstance(row, Failed)]

    @property
    def shard(self) -> Shard | None:
        """The part of the data that was answered; None for all of it."""
        return self.options.shard if self.options else None

    @property
    def shard_remark(self) -> str | None:
        """A line for the results of a shard; None for those of a whole set."""
        if self.shard is None or self.data.whole is None:
            return None
        some = f"{self.data.records:,} of {self.data.whole.records:,} records"
        return f"shard {self.shard}, {some}: edgetune bench merge joins all shards into a measurement"

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Where rows come from, by the machines' names; the only machine has the name ""."""
        if self.machines is not None:
            return self.machines
        assert self.machine is not None and self.versions is not None and self.options is not None
        return {"": Origin(self.created, self.command, self.machine, self.versions, self.options, self.shards)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found: dict[str, Any] = encode(self)
        for row, line in zip(self.rows, found["rows"], strict=True):
            if isinstance(row, Measured) and row.answers is not None:
                line["answers"] = [answer.to_dict() for answer in row.answers]
        return found


def check_row_name(name: str) -> None:
    """Refuse what cannot stand in tables and name the file of a row's predictions.

    Raises:
        InputError: the name is empty, longer than 200 bytes, or holds line breaks or other signs that do not print.
    """
    if not name.isprintable() or not 0 < len(name.encode()) <= 200:
        raise InputError(f"{name!r:.60} is not the name of a row", hint="use up to 200 letters, digits and signs")


def read_results(path: Path) -> Results:
    """Read a file of results and check every value of it.

    Raises:
        InputError: the file is missing, is not such a file, or another version wrote it; the message names the file,
            the row and the field.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", hint="give what edgetune bench or edgetune-run bench wrote")
    value = read_json_value(path)
    if not (isinstance(value, dict) and isinstance(value.get("rows"), list) and "data" in value):
        raise InputError(f"{path}: not the results of a measurement (no 'rows' or no 'data')")
    schema = value.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise InputError(
            f"{path}: schema {excerpt(schema, 40)}, this version reads schema {SCHEMA}",
            hint="measure again with this version of edgetune",
        )
    try:
        return decode(Results, value)
    except InputError as error:
        raise InputError(f"{path}: {error}", hint=error.hint) from error


@cache
def results_schema() -> dict[str, Any]:
    """The JSON Schema of a file of results, draft 2020-12 (results.schema.json in this package)."""
    text = (files(__package__) / "results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
